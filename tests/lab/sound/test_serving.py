from __future__ import annotations

import contextlib
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from sound_cases import clips, hiss, speech_like
from torch import nn

import torchcbl
from torchcbl.lab.sound.batches import SoundBatches
from torchcbl.lab.sound.features import features_on_disk
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.saving import SETTINGS, TENSORS
from torchcbl.lab.sound.serving import Recogniser
from torchcbl.sharing.fingerprint import inventory

WORDS = ("bed", "cat", "yes")


@pytest.fixture
def fitted(front_end: MelFrontEnd) -> MelFrontEnd:
    front_end.fit(front_end.log_mel(speech_like(3)))
    return front_end


def plain() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Conv2d(4, 8, 3, stride=2), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)).eval()


def loop() -> torchcbl.ContextLoop:
    net = torchcbl.ContextLoop(plain(), sites=["1", "3"], example=torch.randn(2, 1, 64, 101), steps=2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return net.eval()


def test_maps_waveforms_to_the_networks_logits(fitted: MelFrontEnd) -> None:
    for network in (plain(), loop()):
        recogniser = Recogniser(fitted, network, WORDS)
        assert torch.equal(recogniser(hiss(4)), network(fitted(hiss(4))))


def test_refines_with_all_steps(fitted: MelFrontEnd) -> None:
    recogniser = Recogniser(fitted, loop(), WORDS)
    refinement = recogniser.refine(hiss(4))
    assert len(refinement.outputs) == 3
    assert torch.equal(refinement.output, recogniser(hiss(4)))
    assert not torch.equal(refinement.outputs[0], refinement.output)


def test_a_plain_network_has_one_step(fitted: MelFrontEnd) -> None:
    recogniser = Recogniser(fitted, plain(), WORDS)
    refinement = recogniser.refine(hiss(4))
    assert len(refinement.outputs) == 1
    assert torch.equal(refinement.output, recogniser(hiss(4)))
    assert refinement.residuals.shape == (0, 4)


def test_what_is_trained_with_is_what_is_served() -> None:
    """Evaluation reads spectrograms from disk, serving computes them: the same bits."""
    data, front_end = clips(5, num_samples=16_000), MelFrontEnd()
    features = features_on_disk(data, front_end)
    front_end.fit(features)
    network = plain()
    recogniser = Recogniser(front_end, network, WORDS)
    (batch,) = SoundBatches(data, features, front_end, batch_size=5)
    with torch.no_grad():
        assert torch.equal(recogniser(from_pcm(data.waveforms)), network(batch[0]))


def test_saved_is_served_bit_for_bit(fitted: MelFrontEnd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = loop()
    before = Recogniser(fitted, net, WORDS)
    before.save_front_end(tmp_path)
    net.save(tmp_path, include_backbone=True)
    monkeypatch.setitem(sys.modules, "transformers.audio_utils", None)  # serving needs no filter bank's library
    front_end, words = Recogniser.load_front_end(tmp_path)
    after = Recogniser(front_end, torchcbl.load(tmp_path, plain()), words).eval()
    assert after.words == WORDS
    assert front_end.settings == fitted.settings
    for name, value in fitted.state_dict().items():
        assert torch.equal(front_end.state_dict()[name], value)
        assert front_end.state_dict()[name].dtype == value.dtype
    for expected, got in zip(before.refine(hiss(3)).outputs, after.refine(hiss(3)).outputs, strict=True):
        assert torch.equal(expected, got)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("front_end")) == [SETTINGS, TENSORS]


def test_other_settings_are_saved(tmp_path: Path) -> None:
    front_end = MelFrontEnd(8_000, 256, 80, 32, floor=1e-5)
    Recogniser(front_end, nn.Identity(), ["ja", "nöö"]).save_front_end(tmp_path / "new" / "folder")
    again, words = Recogniser.load_front_end(tmp_path / "new" / "folder")
    assert again.settings == front_end.settings
    assert words == ("ja", "nöö")
    assert torch.equal(again(hiss(1)), front_end(hiss(1)))


@pytest.mark.parametrize("network", [plain, loop])
def test_exports_as_one_module(network: Callable[[], nn.Module], fitted: MelFrontEnd) -> None:
    recogniser = Recogniser(fitted, network(), WORDS).eval()
    shapes = {"waveforms": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(recogniser, (hiss(2),), dynamic_shapes=shapes, strict=False)
    torch.testing.assert_close(program.module()(hiss(5)), recogniser(hiss(5)), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # the exporter's own
def test_exports_to_onnx(fitted: MelFrontEnd) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    recogniser = Recogniser(fitted, loop(), WORDS).eval()
    shapes = {"waveforms": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(recogniser, (hiss(2),), dynamic_shapes=shapes, strict=False)
    with contextlib.redirect_stdout(io.StringIO()):
        written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    session = runtime.InferenceSession(written.model_proto.SerializeToString())
    (logits,) = session.run(None, {session.get_inputs()[0].name: hiss(5).numpy()})
    torch.testing.assert_close(torch.from_numpy(logits), recogniser(hiss(5)), rtol=1e-4, atol=1e-5)


def resave(folder: Path, **changed: torch.Tensor) -> None:
    """Change tensors and write a fingerprint that fits them, as a stranger would."""
    tensors = {**load_file(folder / TENSORS), **changed}
    save_file(tensors, folder / TENSORS)
    content = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps({**content, "tensors": inventory(tensors)}))


def edit(folder: Path, **changed: object) -> None:
    content = json.loads((folder / SETTINGS).read_text())
    (folder / SETTINGS).write_text(json.dumps({**content, **changed}))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


DAMAGES: list[tuple[Callable[[Path], object], type[Exception], str]] = [
    (lambda folder: (folder / SETTINGS).unlink(), FileNotFoundError, "front_end.json is missing: pass the folder"),
    (lambda folder: (folder / TENSORS).unlink(), FileNotFoundError, "safetensors is missing: the save is not whole"),
    (lambda folder: cut_short(folder / SETTINGS), ValueError, "front_end.json is damaged .JSONDecodeError"),
    (lambda folder: cut_short(folder / TENSORS), ValueError, "front_end.safetensors is damaged"),
    (lambda folder: edit(folder, format=7), ValueError, "has format 7, expected 1: use the torchcbl that wrote it"),
    (lambda folder: edit(folder, words="yes"), ValueError, "damaged .*words must be a list of strings"),
    (lambda folder: edit(folder, settings=[]), ValueError, "damaged .*settings must be an object"),
    (lambda folder: edit(folder, settings={"evil": 1}), ValueError, "damaged .*unexpected keyword argument 'evil'"),
    (lambda folder: edit(folder, settings={"hop": 0}), ValueError, "damaged .*hop must be at least 1, got 0"),
    (lambda folder: edit(folder, settings={"bins": 8}), ValueError, "damaged .*filters must be float32 of shape .8,"),
    (lambda folder: edit(folder, tensors={"filters": 3}), ValueError, "damaged .*tensors must list"),
    (lambda folder: edit(folder, tensors={}), ValueError, "differs from what was saved: '.*' is not in the save"),
    (lambda folder: resave(folder, extra=torch.ones(1)), ValueError, "'extra' is not in the save"),
    (lambda folder: resave(folder, window=torch.ones(400)), ValueError, "'window' is float32 .400., expected float64"),
    (lambda folder: resave(folder, std=torch.zeros(64)), ValueError, "'std' is not positive in every bin"),
    (lambda folder: resave(folder, mean=torch.full((64,), torch.nan)), ValueError, "'mean' holds NaN or infinity"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "error", "message"), DAMAGES)
def test_damaged_saves_are_refused(
    damage: Callable[[Path], object], error: type[Exception], message: str, fitted: MelFrontEnd, tmp_path: Path
) -> None:
    Recogniser(fitted, plain(), WORDS).save_front_end(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        Recogniser.load_front_end(tmp_path)


def test_files_of_two_saves_are_refused(fitted: MelFrontEnd, tmp_path: Path) -> None:
    Recogniser(fitted, plain(), WORDS).save_front_end(tmp_path)
    settings = (tmp_path / SETTINGS).read_bytes()
    fitted.fit(fitted.log_mel(hiss(3)))
    Recogniser(fitted, plain(), WORDS).save_front_end(tmp_path)
    (tmp_path / SETTINGS).write_bytes(settings)
    with pytest.raises(ValueError, match="'mean' has other values; 'std' has other values. Save the front end again"):
        Recogniser.load_front_end(tmp_path)


@pytest.mark.parametrize("words", [(), ("yes", "yes"), "yes"])
def test_words_that_are_refused(words: tuple[str, ...], fitted: MelFrontEnd) -> None:
    with pytest.raises(ValueError, match="words must name each class once, got"):
        Recogniser(fitted, plain(), words)
