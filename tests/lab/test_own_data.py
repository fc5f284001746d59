"""Studies of sound and of one's own data, from files to pages; the sounds are tones that say their class."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from torchcbl.lab.cli import main
from torchcbl.lab.data import load_dataset
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.listen import Heard, load_recogniser, loudest
from torchcbl.lab.listen import listen as hear_file
from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.records import read_record
from torchcbl.lab.report import build_report
from torchcbl.lab.report import robustness as pages
from torchcbl.lab.robustness import measure, read_noisy
from torchcbl.lab.sound.front_end import from_pcm

WORDS = ("bed", "cat", "happy", "no", "yes")
SPEAKERS = [f"{number:08x}" for number in range(40)]  # the published rule spreads them over the parts
RATE = 16_000


def tone(word: int, speaker: int) -> np.ndarray:
    time = np.arange(RATE) / RATE
    noise = np.random.default_rng((word, speaker)).normal(size=RATE)
    return np.rint(6000 * np.sin(2 * np.pi * 300 * (word + 1) * time) + 200 * noise).astype(np.int16)


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHCBL_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.delenv("TORCHCBL_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official layout without its lists, so that the speakers' hashes split it."""
    folder = tmp_path_factory.mktemp("archive")
    for index, word in enumerate(WORDS):
        (folder / word).mkdir()
        for speaker, name in enumerate(SPEAKERS):
            soundfile.write(folder / word / f"{name}_nohash_0.wav", tone(index, speaker), RATE, subtype="PCM_16")
    (folder / "_background_noise_").mkdir()
    hiss = np.random.default_rng(7).integers(-5000, 5000, 5 * RATE, dtype=np.int16)
    soundfile.write(folder / "_background_noise_" / "hiss.wav", hiss, RATE, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def study(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "speech"
    changes = [
        "--epochs=4",
        "--seeds=1",
        "--set=width=2",
        "--set=batch_size=16",
        "--set=masking=true",
        "--set=noise=0.5",
    ]
    words = ["compare", "speech-five-words", *changes, "--arms=standard,cbl", "--jobs=1"]
    assert main([*words, f"--data={archive}", f"--out={out}"]) == 0
    return out


def test_a_study_of_speech_says_what_it_is(study: Path) -> None:
    table = (study / "table.md").read_text("utf-8")
    assert "clips; speech-five-words" in table
    assert "not comparable with a published 35-word figure" in table
    assert "Balanced test accuracy" in table
    assert "not comparable with a published 35-word figure" in (study / "report.html").read_text("utf-8")


def test_records_keep_confusion_and_classes(study: Path) -> None:
    record = read_record(study / "records" / "cbl-seed0.json")
    assert record.classes == WORDS
    assert record.test.confusion is not None
    assert np.array(record.test.confusion).shape == (3, 5, 5)
    assert np.array(record.test.confusion).sum() == 3 * record.test.n
    recalls = [np.mean(np.diag(m) / np.sum(m, axis=1)) for m in np.array(record.test.confusion)]
    assert record.test.balanced_accuracy == pytest.approx(recalls)
    assert record.test.accuracy[-1] > 0.5, "tones are not hard to tell apart"
    assert (study / "figures" / "confusion.png").is_file()


def test_what_is_served_is_what_was_trained(study: Path, archive: Path) -> None:
    """The waveforms' logits are those of the spectrograms that the run was tested on, bit for bit."""
    recipe = load_recipe(study / "recipe.toml")
    dataset = load_dataset(recipe, archive)
    recogniser = load_recogniser(study / "runs" / "cbl-seed0")
    model = rebuild(study / "runs" / "cbl-seed0").eval()
    x, _ = next(iter(dataset.batches("test", 8)))
    with torch.no_grad():
        assert torch.equal(recogniser(from_pcm(dataset.clips["test"].waveforms[:8])), model(x))  # type: ignore[attr-defined]
    assert recogniser.words == WORDS


def test_a_few_clips_are_of_all_words(archive: Path) -> None:
    dataset = load_dataset(load_recipe("speech-five-words"), archive)
    few = list(dataset.batches("train", 100, limit=10))
    assert torch.bincount(few[0][1], minlength=5).tolist() == [2] * 5
    (every, labels), x = next(iter(dataset.batches("train", 1000))), few[0][0]
    found = [(every == one).flatten(1).all(1).nonzero().item() for one in x]
    assert torch.equal(labels[found], few[0][1]), "each spectrogram keeps its label"


def test_training_hears_noise_and_testing_none(archive: Path) -> None:
    recipe = dataclasses.replace(load_recipe("speech-five-words"), noise=1.0, masking=True)
    noisy, plain = load_dataset(recipe, archive), load_dataset(load_recipe("speech-five-words"), archive)
    order = [[y.tolist() for _, y in one.batches("train", 16, seed=3)] for one in (noisy, plain)]
    assert order[0] == order[1]
    first = [next(iter(one.batches("train", 16, seed=3)))[0] for one in (noisy, plain)]
    assert not torch.equal(*first)
    assert torch.equal(*[next(iter(one.batches("test", 16)))[0] for one in (noisy, plain)])
    assert {tuple(d.form.shape) for d in (noisy, plain)} == {(1, 64, 101)}


def test_listening(study: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = study / "runs" / "cbl-seed0"
    long = np.concatenate([np.zeros(RATE, np.int16), tone(3, 99), np.zeros(RATE // 2, np.int16)])
    soundfile.write(tmp_path / "long.flac", np.stack([long, long], 1), RATE, subtype="PCM_16")
    heard = hear_file(run, tmp_path / "long.flac")
    assert heard.start == pytest.approx(1.0, abs=0.01)
    assert len(heard.probabilities) == 3
    assert main(["listen", str(run), str(tmp_path / "long.flac")]) == 0
    printed = capsys.readouterr().out
    assert "step 2:" in printed
    assert heard.verdict in printed
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    for words, message in [
        ([str(tmp_path / "broken.wav")], "cannot be listened to"),
        ([str(tmp_path / "none.wav")], "cannot be listened to"),
        ([], "name a sound file, or --microphone SECONDS"),
    ]:
        assert main(["listen", str(run), *words]) == 2
        assert message in capsys.readouterr().err


def test_the_verdict_of_listening() -> None:
    rows = ((0.6, 0.4), (0.3, 0.7), (0.9, 0.1))
    assert Heard(("no", "yes"), rows, 0, 1).verdict == (
        "the answer changed from 'no' to 'yes' at step 1, then from 'yes' to 'no' at step 2"
    )
    assert Heard(("no", "yes"), rows[:1], 0, 1).verdict == "the answer is 'no'; this network has no loop"
    assert Heard(("no", "yes"), rows[:1] * 2, 0, 1).verdict == "the answer is 'no' at every step"
    assert loudest(np.array([9, 0, 0], np.int16), 5) == 0


def test_robustness(study: Path, archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["robustness", str(study), f"--data={archive}"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "clean" in printed
    assert "-5 dB" in printed
    page = (study / "robustness.html").read_text("utf-8")
    assert "not comparable with a published 35-word figure" in page
    assert "cbl, τ = 2" in page
    found = measure(study, archive)
    assert [run.ratios for run in found.runs] == [("clean", "20 dB", "10 dB", "5 dB", "0 dB", "-5 dB")] * 2
    for run in found.runs:
        record = read_record(study / "records" / f"{run.arm}-seed{run.seed}.json")
        assert run.accuracy[0] == pytest.approx(record.test.accuracy), "clean clips are the test part"
    assert pages.render(found) == page
    kept = study / "measures" / "noise" / "cbl-seed0.json"
    earlier = study / "robustness" / "cbl-seed0.json"
    earlier.parent.mkdir()
    expected = next(run for run in found.runs if (run.arm, run.seed) == ("cbl", 0))
    earlier.write_text(json.dumps(dataclasses.asdict(expected)))
    assert read_noisy(earlier) == expected
    kept.unlink()
    assert measure(study, archive) == found, "what earlier versions measured is not measured again"
    assert not kept.exists()
    earlier.write_text(json.dumps(dataclasses.asdict(expected) | {"seed": 1}))
    with pytest.raises(ValueError, match=r"cbl-seed0.json is damaged .*: delete it, and run the same command again"):
        measure(study, archive)
    earlier.unlink()
    assert main(words) == 0
    assert capsys.readouterr().out.count("cbl-seed0:") == 1, "only what is missing is measured again"


def test_robustness_needs_noise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["robustness", str(tmp_path)]) == 2
    assert "holds no study" in capsys.readouterr().err


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for index, name in enumerate(("dark", "grey", "light")):
        (folder / name).mkdir()
        for number in range(20):
            pixels = np.random.default_rng((index, number)).integers(80 * index, 80 * index + 60, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_images_of_one_s_own(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "own"
    changes = ["--epochs=3", "--seeds=1", "--arms=standard,cbl", "--set=width=4", "--set=image_size=16", "--jobs=1"]
    assert main(["compare", f"--data=images:{pictures}", *changes, f"--out={out}"]) == 0
    assert "on images of your own" in capsys.readouterr().out
    record = read_record(out / "records" / "cbl-seed0.json")
    assert record.classes == ("dark", "grey", "light")
    assert record.test.n == 6
    assert (out / "runs" / "cbl-seed0" / "model" / "form.json").is_file()
    assert main(["audit", str(out / "runs" / "cbl-seed0")]) == 0
    assert main(["listen", str(out / "runs" / "cbl-seed0"), "a.wav"]) == 2
    assert "only a run on sound can listen" in capsys.readouterr().err
    assert main(["robustness", str(out), f"--data=images:{pictures}"]) == 2
    assert "comes without recordings of noise" in capsys.readouterr().err

    others = tmp_path / "others"
    shutil.copytree(pictures, others)
    (others / "light" / "0.png").write_bytes((others / "dark" / "0.png").read_bytes())
    for command in (["compare", *changes, f"--out={out}"], ["compare", *changes, "--seeds=2", f"--out={out}"]):
        assert main([*command, f"--data=images:{others}"]) == 2
        assert "was made with other data: digest there" in capsys.readouterr().err
    assert main(["measure", str(out), "--only=clean", f"--data=images:{others}"]) == 2
    assert "was made with other data: digest there" in capsys.readouterr().err


def test_sound_of_one_s_own(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "mine"
    for word in WORDS[:2]:
        (folder / word).mkdir(parents=True)
        for path in list((archive / word).glob("*.wav"))[:20]:
            (folder / word / path.name).write_bytes(path.read_bytes())
    out = tmp_path / "own"
    changes = ["--epochs=1", "--seeds=1", "--arms=cbl", "--set=width=2", "--set=seconds=0.5", "--jobs=1"]
    assert main(["compare", f"--data=audio:{folder}", *changes, f"--out={out}"]) == 0
    record = read_record(out / "records" / "cbl-seed0.json")
    assert (record.classes, record.test.n) == (WORDS[:2], 4)
    assert main(["listen", str(out / "runs" / "cbl-seed0"), str(next((folder / "cat").iterdir()))]) == 0
    assert "of 1.00 s" in capsys.readouterr().out


def test_own_data_need_their_folder_and_their_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        (["images", f"--out={tmp_path / 'a'}"], "data of your own need their folder: --data images:DIR"),
        (["cifar10", "--data=audio:x", f"--out={tmp_path / 'b'}"], "--data audio:DIR comes with the recipe 'audio'"),
        (["--data=images:/nowhere", f"--out={tmp_path / 'c'}"], "/nowhere"),
    ]:
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err
    recipe = dataclasses.replace(load_recipe("audio"), noise=0.5)
    with pytest.raises(ValueError, match="noise = 0.5 needs recordings of noise"):
        load_dataset(recipe, _two_classes(tmp_path / "d"))


def test_damaged_files_are_refused_or_skipped_by_choice(tmp_path: Path, pictures: Path) -> None:
    sounds = _two_classes(tmp_path / "sounds")
    (sounds / "a" / "0.wav").write_bytes(b"RIFF")
    images = tmp_path / "images"
    for name in ("dark", "grey"):
        (images / name).mkdir(parents=True)
        for number in range(6):
            (images / name / f"{number}.png").write_bytes((pictures / name / f"{number}.png").read_bytes())
    (images / "dark" / "0.png").write_bytes(b"PNG")
    for kind, folder, name in (("audio", sounds, "a/0.wav"), ("images", images, "dark/0.png")):
        recipe = load_recipe(kind)
        with pytest.raises(ValueError, match=name):
            load_dataset(recipe, folder)
        with pytest.warns(UserWarning, match=name):
            dataset = load_dataset(dataclasses.replace(recipe, damaged="skip"), folder)
        total = 9 if kind == "audio" else 11
        assert sum(dataset.size(part) for part in ("train", "validation", "test")) == total
    with pytest.raises(ValueError, match='\'damaged\' must be "refuse" or "skip", got "keep"'):
        load_recipe("audio", {"damaged": "keep"})


def _two_classes(folder: Path) -> Path:
    for index, name in enumerate(("a", "b")):
        (folder / name).mkdir(parents=True)
        for number in range(5):
            soundfile.write(folder / name / f"{number}.wav", tone(index, number), RATE, subtype="PCM_16")
    return folder


def test_a_report_of_few_classes_draws_every_step(study: Path) -> None:
    report = build_report(study)
    assert "confusion" in [path.stem for path in report.figures]
    assert "By class" in report.page.read_text("utf-8")
