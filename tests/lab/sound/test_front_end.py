from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from sound_cases import SECOND, hiss, rumble, speech_like, to_pcm, tones
from torch import Tensor

from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.mel import MelSettings

SOUNDS = {
    "tones": tones(),
    "full-scale tones": tones(1.0),
    "quiet tones": tones(0.001),
    "hiss": hiss(4),
    "rumble": rumble(4),
    "speech": speech_like(4),
    "16-bit speech": from_pcm(to_pcm(speech_like(4))),
    "silence": torch.zeros(1, SECOND),
    "click": torch.eye(1, SECOND),
    "short": hiss(2)[:, :500],
}


def librosas(waveforms: Tensor, dtype: type[np.floating], **settings: int) -> Tensor:
    librosa = pytest.importorskip("librosa")
    options = {"sr": 16_000, "n_fft": 400, "hop_length": 160, "n_mels": 64, **settings}
    mel = [librosa.feature.melspectrogram(y=x.numpy().astype(dtype), **options) for x in waveforms]
    return torch.from_numpy(np.log(np.stack(mel) + 1e-6)).double()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", SOUNDS)
def test_equals_librosa(front_end: MelFrontEnd, name: str, dtype: type[np.floating]) -> None:
    got = front_end.log_mel(SOUNDS[name])
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), librosas(SOUNDS[name], dtype), rtol=0, atol=1e-5)


def test_equals_librosa_with_other_settings() -> None:
    front_end = MelFrontEnd(sample_rate=8_000, window=256, hop=100, bins=32)
    expected = librosas(hiss(2), np.float32, sr=8_000, n_fft=256, hop_length=100, n_mels=32)
    torch.testing.assert_close(front_end.log_mel(hiss(2)).double(), expected, rtol=0, atol=1e-5)


def test_filters_are_librosas(front_end: MelFrontEnd) -> None:
    librosa = pytest.importorskip("librosa")
    expected = torch.from_numpy(librosa.filters.mel(sr=16_000, n_fft=400, n_mels=64))
    torch.testing.assert_close(front_end.filters, expected, rtol=1e-6, atol=0)


def test_a_second_has_101_frames(front_end: MelFrontEnd) -> None:
    assert front_end.log_mel(hiss(2)).shape == (2, 64, 101)
    assert front_end(hiss(2)).shape == (2, 1, 64, 101)


def test_a_tone_stands_in_its_bin_from_end_to_end(front_end: MelFrontEnd) -> None:
    """440 Hz: Slaney's scale has 15 mel at 1000 Hz, linear below, and 45.245 mel at 8000 Hz over 65 steps."""
    tone = torch.sin(2 * torch.pi * 440 * torch.arange(SECOND) / SECOND)[None]
    loudest = front_end.log_mel(tone)[0, :, 1:-1].argmax(0)
    assert loudest.unique().tolist() == [round(440 / 1000 * 15 / (45.245 / 65)) - 1]


def test_a_clip_does_not_depend_on_its_batch(front_end: MelFrontEnd) -> None:
    waveforms = torch.cat([speech_like(6), hiss(6), tones()])
    whole = front_end(waveforms)
    for size in (1, 2, 5):
        assert torch.equal(torch.cat([front_end(part) for part in waveforms.split(size)]), whole)
    order = torch.randperm(len(waveforms))
    assert torch.equal(front_end(waveforms[order]), whole[order])


def test_normalises_per_bin_with_what_was_fitted(front_end: MelFrontEnd) -> None:
    train, other = front_end.log_mel(speech_like(300)[:, 6000:9000]), front_end.log_mel(hiss(3))
    front_end.fit(train.numpy())  # more than a chunk of them
    mean = train.double().mean((0, 2))
    std = train.double().std((0, 2), correction=0)
    torch.testing.assert_close(front_end.mean.double(), mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(front_end.std.double(), std, rtol=1e-6, atol=0)
    expected = (other.double() - mean[:, None]) / std[:, None]
    torch.testing.assert_close(front_end(hiss(3))[:, 0].double(), expected, rtol=1e-5, atol=1e-5)
    normalised = front_end.normalise(train)
    assert normalised.mean((0, 1, 3)).abs().max() < 1e-4
    assert (normalised.std((0, 1, 3)) - 1).abs().max() < 1e-3


def test_fits_tensors_as_arrays(front_end: MelFrontEnd) -> None:
    features = front_end.log_mel(speech_like(3))
    front_end.fit(features)
    mean = front_end.mean.clone()
    front_end.fit(features.numpy())
    assert torch.equal(front_end.mean, mean)


def test_sums_are_exact_far_from_zero(front_end: MelFrontEnd) -> None:
    front_end.fit(torch.randn(300, 64, 101) * 1e-2 + 1e4)
    assert (front_end.std / 1e-2 - 1).abs().max() < 0.1


def test_conversions_keep_what_was_fitted(front_end: MelFrontEnd) -> None:
    front_end.fit(front_end.log_mel(speech_like(3)))
    expected = front_end(hiss(2))
    for convert in (torch.nn.Module.half, torch.nn.Module.double, torch.nn.Module.float, torch.nn.Module.cpu):
        assert torch.equal(convert(front_end)(hiss(2)), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(front_end(hiss(2)), expected)
    assert front_end(hiss(2).double()).dtype == torch.float32


def test_goes_through_export_and_compile(front_end: MelFrontEnd) -> None:
    front_end.fit(front_end.log_mel(speech_like(3)))
    shapes = {"waveforms": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(front_end, (hiss(2),), dynamic_shapes=shapes)
    assert torch.equal(program.module()(hiss(5)), front_end(hiss(5)))
    compiled = torch.compile(front_end, fullgraph=True, backend="eager")
    assert torch.equal(compiled(hiss(5)), front_end(hiss(5)))


def test_saved_filters_need_no_library(front_end: MelFrontEnd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers.audio_utils", None)
    again = MelFrontEnd(filters=front_end.filters)
    assert torch.equal(again.log_mel(hiss(1)), front_end.log_mel(hiss(1)))
    with pytest.raises(ImportError, match="needs transformers, which is not installed: pip install 'torchcbl.audio.'"):
        MelFrontEnd()


def test_waveforms_that_are_refused(front_end: MelFrontEnd) -> None:
    with pytest.raises(TypeError, match="floats in .-1, 1., got torch.int16: see from_pcm"):
        front_end(torch.zeros(1, SECOND, dtype=torch.int16))
    with pytest.raises(ValueError, match=r"must be \(B, S\), got \(16000,\): use x.None. for a single clip"):
        front_end(torch.zeros(SECOND))
    with pytest.raises(TypeError, match="samples must be int16, got float64: floats in"):
        from_pcm(np.zeros((1, 3)))  # type: ignore[arg-type]


def test_features_that_are_refused(front_end: MelFrontEnd) -> None:
    with pytest.raises(ValueError, match=r"features must be \(N, 64, frames\), got \(2, 32, 101\)"):
        front_end.fit(torch.zeros(2, 32, 101))
    with pytest.raises(ValueError, match="features must be"):
        front_end.fit(torch.zeros(0, 64, 101))
    features = torch.randn(2, 64, 101)
    features[:, 5] = 0.1
    with pytest.raises(ValueError, match="mel bins .5. are constant in the training features"):
        front_end.fit(features)
    features[0, 5, 0] = torch.nan
    with pytest.raises(ValueError, match="features hold NaN or infinity"):
        front_end.fit(features)
    assert torch.equal(front_end.mean, torch.zeros(64))


@pytest.mark.filterwarnings("ignore:At least one mel filter")  # transformers warns of it first
def test_settings_out_of_range() -> None:
    with pytest.raises(ValueError, match="MelFrontEnd's hop must be at least 1, got 0"):
        MelFrontEnd(hop=0)
    with pytest.raises(ValueError, match="MelFrontEnd's floor must be finite and above 0, got 0"):
        MelFrontEnd(floor=0.0)
    with pytest.raises(ValueError, match="MelFrontEnd's window must be at least 2 samples, got 1"):
        MelSettings(window=1)
    with pytest.raises(
        ValueError, match="256 bins are too many for a window of 400 samples: some hold none of its 201"
    ):
        MelFrontEnd(bins=256)
    with pytest.raises(
        ValueError, match=r"filters must be float32 of shape \(64, 201\).*got torch.float64 of \(2, 3\)"
    ):
        MelFrontEnd(filters=torch.zeros(2, 3, dtype=torch.float64))
