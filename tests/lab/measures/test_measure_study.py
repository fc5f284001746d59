"""Measuring whole studies: every kind, resumed after a kill, read back, and shown."""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from torchcbl.lab.arms import find_arm
from torchcbl.lab.cli import main
from torchcbl.lab.data import load_data, load_dataset
from torchcbl.lab.data.dataset import Form
from torchcbl.lab.measures import KIND_NAMES, read_correct, tasks
from torchcbl.lab.measures.attack.suite import Budget
from torchcbl.lab.measures.attacks import AttackMeasure, Attacks
from torchcbl.lab.measures.base import Ground, Subject
from torchcbl.lab.measures.clean import Clean
from torchcbl.lab.measures.disturb.catalogue import CORRUPTIONS
from torchcbl.lab.measures.found import Measures
from torchcbl.lab.measures.gallery import choose
from torchcbl.lab.measures.graded import CorruptionMeasure, Graded
from torchcbl.lab.measures.kinds import KINDS, find_kind
from torchcbl.lab.measures.store import read_result
from torchcbl.lab.measures.study import measure_study
from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.records import read_record, write_record
from torchcbl.lab.report.measures import partial, render, sections, write_measures
from torchcbl.lab.report.measures.graded import baseline_errors, mean_corruption_error
from torchcbl.lab.runs import Run
from torchcbl.lab.training import train
from torchcbl.lab.weights import save_weights

ARMS = ("standard", "cbl", "shuffled-context", "label-context")
SAMPLES = 24
SHORT = Budget(eps=(2.0, 8.0), pgd_steps=4, apgd_steps=6, queries=10, large_steps=5)
FITTING = ("clean", "corruptions", "occlusion", "attacks")


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHCBL_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of one epoch: two seeds of the plain network and the loop, one of the others."""
    out = tmp_path_factory.mktemp("trained")
    arms = json.dumps([*ARMS, "loop-free"])
    changes = {"seeds": "2", "epochs": "1", "width": "4", "context_dim": "8", "validation_size": "200", "arms": arms}
    recipe = load_recipe("demo", changes)
    (out / "recipe.toml").write_text(recipe.as_toml())
    for arm, seed in [("standard", 0), ("cbl", 0), ("standard", 1), ("cbl", 1), *((arm, 0) for arm in ARMS[2:])]:
        train(Run(recipe, arm, seed, out))
    return out


@pytest.fixture(scope="module")
def measured(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same, measured by the command, and what was printed; the attacks are short."""
    folder = tmp_path_factory.mktemp("measured") / "study"
    shutil.copytree(trained, folder)
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setitem(KINDS, "attacks", AttackMeasure(SHORT))
        assert main(["measure", str(folder), f"--samples={SAMPLES}"]) == 0
    return folder, printed.getvalue()


def of(folder: Path, kind: str, run: str) -> Path:
    return folder / "measures" / kind / f"{run}.json"


def test_every_kind_of_every_run_is_there(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    runs = [
        "standard-seed0",
        "cbl-seed0",
        "standard-seed1",
        "cbl-seed1",
        "shuffled-context-seed0",
        "label-context-seed0",
    ]
    for kind in FITTING:
        assert {path.stem for path in (folder / "measures" / kind).glob("*.json")} == set(runs)
        assert all(f"{kind}, {run}: " in printed for run in runs)
    assert "ambiguity: left out, there are no human votes on digits" in printed
    assert "noise: left out, demo is on digits, which comes without recordings of noise" in printed
    assert printed.rstrip().endswith(f"page: {folder / 'measures.html'}")
    order = re.findall(r"^clean, (\S+):", printed, re.MULTILINE)
    assert order == [
        "standard-seed0",
        "cbl-seed0",
        "shuffled-context-seed0",
        "label-context-seed0",
        "standard-seed1",
        "cbl-seed1",
    ]


def test_clean_is_what_the_record_says(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    for run in ("standard-seed0", "cbl-seed1", "label-context-seed0", "shuffled-context-seed0"):
        record, found = read_record(folder / "records" / f"{run}.json"), read_result(Clean, of(folder, "clean", run))
        assert found.about.n == record.test.n == 397
        assert found.scores.accuracy == pytest.approx(record.test.accuracy, abs=1e-6)
        assert found.scores.loss == pytest.approx(record.test.loss, rel=1e-4)
        assert found.about.finished == record.finished
        assert [round(sum(one.count) * 1.0) for one in found.bins] == [397] * len(found.bins)
        assert [one.ece for one in found.bins] == pytest.approx(found.scores.ece, abs=1e-5)
        right = found.correct()
        better, worse = ((right[-1] & ~right[0]).sum(), (right[0] & ~right[-1]).sum())
        assert [one.better for one in found.changes].count(True) == better
        assert [one.better for one in found.changes].count(False) == worse
    plain, loop = (read_result(Clean, of(folder, "clean", f"{arm}-seed0")) for arm in ("standard", "cbl"))
    assert plain.exits == ()
    assert {(one.rule, one.first) for one in loop.exits} == {("confidence", 0), ("confidence", 1), ("agreement", 1)}
    assert [len(one.seconds) for one in plain.timings] == [1, 1]
    assert [(one.batch, len(one.seconds)) for one in loop.timings] == [(1, 3), (128, 3)]
    shuffled = read_result(Clean, of(folder, "clean", "shuffled-context-seed0"))
    assert [one.batch for one in shuffled.timings] == [2, 128], "a single sample has no other"


def test_answers_are_those_of_the_network(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    recipe = load_recipe(folder / "recipe.toml")
    run = Run(recipe, "cbl", 0, folder)
    data = load_data("digits", validation_size=recipe.validation_size)
    x = (data.test.images / 255 - data.mean[0]) / data.std[0]
    with torch.no_grad():
        outputs = find_arm("cbl").outputs(Subject(run, read_record(run.record)).model, x)
    expected = torch.stack([y.argmax(1) == data.test.labels for y in outputs]).numpy()
    found = read_correct(folder, "cbl-seed0")
    assert found.shape == (3, 397)
    assert found.dtype == np.bool_
    assert (found == expected).mean() > 0.995  # rounding may turn an answer on the edge
    assert np.array_equal(read_correct(folder, "loop-free-seed0"), found[:1])
    assert read_correct(folder, "standard-seed1").shape == (1, 397)


def test_corruptions_and_occlusion_by_grade_and_step(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    for kind, grades in (("corruptions", (1, 2, 3, 4, 5)), ("occlusion", (10, 20, 30, 40, 50, 60))):
        found = read_result(Graded, of(folder, kind, "cbl-seed0"))
        assert found.about.n == SAMPLES
        assert found.disturbances[0].grades == grades
        assert all(len(scores.accuracy) == 3 for one in found.disturbances for scores in one.scores)
        assert found.mean("accuracy", 2) < found.clean.accuracy[2]
    corrupted = read_result(Graded, of(folder, "corruptions", "cbl-seed0"))
    assert corrupted.skipped == {"saturate": "needs three channels of colour, the images have 1"}
    assert {one.name for one in corrupted.disturbances} == CORRUPTIONS.keys() - {"saturate"}


def test_attacks_see_the_loop(measured: tuple[Path, str]) -> None:
    folder, _ = measured
    found = read_result(Attacks, of(folder, "attacks", "cbl-seed0"))
    assert found.about.n == SAMPLES
    assert {one.aim for one in found.attacks} == {"0", "1", "2", "sum"}
    assert found.parts[-1].square <= found.parts[0].square <= found.clean.accuracy[-1]
    assert found.find("pgd", "2", 8.0).loss[2] > found.clean.loss[2]  # type: ignore[union-attr]
    assert not found.oracle
    assert read_result(Attacks, of(folder, "attacks", "label-context-seed0")).oracle
    assert read_result(Attacks, of(folder, "attacks", "shuffled-context-seed0")).depends_on_batch


def test_the_page_holds_everything_and_needs_nothing(measured: tuple[Path, str]) -> None:
    folder, printed = measured
    page = (folder / "measures.html").read_text("utf-8")
    assert "http" not in page.replace("http://www.w3.org/", "")
    for words in ("Corrupted images", "Occluded and cluttered", "Attacks", "loop-free, τ = 0", "label-context, τ = 2"):
        assert words in page
    assert "told the labels" in page
    assert "ambiguity: there are no human votes on digits" in page
    found = Measures.read(folder, KIND_NAMES, {"noise": "a reason"})
    again = render(found, load_dataset(found.recipe))
    assert "noise: a reason." in again
    shown = 0
    for arm in ("cbl", "shuffled-context"):
        changes = [one for run in found.of("clean", Clean)[arm] for one in run.changes]
        shown += sum(min(24, len({one.index for one in changes if one.better is kind})) for kind in (True, False))
    assert again.count("data:image/png;base64,") == shown > 0
    assert "data:image/png" not in render(found, None)
    assert render(found, None) == render(Measures.read(folder, KIND_NAMES, {"noise": "a reason"}), None)
    assert "Accuracy: cbl scored" not in printed  # the report tests it, with a correction of its own
    assert [section.kind for section in sections(found)] == list(FITTING)
    assert (folder / "measures.md").read_text("utf-8").count("| cbl, τ = 2 |") >= 5


def test_measures_of_a_partial_study_say_so(
    measured: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, printed = measured
    found = Measures.read(folder, KIND_NAMES)
    said = partial(found)
    assert said.startswith("Partial: 6 of 8 runs finished, and its tests are not corrected for looking before the end;")
    assert said.endswith("missing: shuffled-context-seed1, label-context-seed1.")
    page = (folder / "measures.html").read_text("utf-8")
    assert f'<p class="partial">{said}</p>' in page
    assert said in printed
    assert "clean: not measured of shuffled-context-seed1, label-context-seed1." in page
    assert partial(replace(found, recipe=replace(found.recipe, seeds=1))) == ""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "docs"))
    docs = importlib.import_module("tables")
    monkeypatch.setattr(docs, "ROOT", tmp_path)
    monkeypatch.setattr(docs, "sections", lambda found: [])
    (tmp_path / "results").symlink_to(folder.parent)
    assert docs.measures(folder.name) == f"{said}\n"


def test_mean_corruption_error(measured: tuple[Path, str]) -> None:
    found = Measures.read(measured[0], KIND_NAMES)
    errors = baseline_errors(found)
    runs = found.of("corruptions", Graded)
    own = [mean_corruption_error(run, 0, errors) for run in runs["standard"]]
    assert np.mean(own) == pytest.approx(100.0), "the baseline's own mean, over its seeds"
    names = [name for name, one in CORRUPTIONS.items() if one.standard]
    run = runs["cbl"][0]
    by_hand = []
    for one in run.disturbances:
        if one.name in names:
            error = sum(1 - scores.accuracy[2] for scores in one.scores)
            base = [
                sum(1 - s.accuracy[-1] for d in r.disturbances if d.name == one.name for s in d.scores)
                for r in runs["standard"]
            ]
            by_hand.append(error / np.mean(base))
    assert mean_corruption_error(run, 2, errors) == pytest.approx(100 * np.mean(by_hand))
    assert math.isnan(mean_corruption_error(run, 2, {}))


def test_again_measures_nothing_and_needs_no_weights(
    measured: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "records-only"
    shutil.copytree(measured[0], folder, ignore=shutil.ignore_patterns("runs", "*.html"))
    assert main(["measure", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "clean, " not in printed
    assert (folder / "measures.html").is_file()
    of(folder, "clean", "cbl-seed1").unlink()
    assert main(["measure", str(folder), "--only=clean"]) == 2
    assert "no weights of cbl-seed1: only where `torchcbl compare` trained" in capsys.readouterr().err
    assert main(["measure", str(folder), "--only=corruptions"]) == 0
    page = (folder / "measures.html").read_text("utf-8")
    assert "clean: not measured of cbl-seed1, shuffled-context-seed1, label-context-seed1." in page
    with pytest.raises(FileNotFoundError):
        read_correct(folder, "cbl-seed1")


def test_a_run_that_was_repeated_is_measured_again(measured: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "repeated"
    shutil.copytree(measured[0], folder)
    record = read_record(folder / "records" / "cbl-seed0.json")
    write_record(folder, replace(record, finished="2099-01-01T00:00:00+00:00"))
    with pytest.raises(FileNotFoundError, match="is of a run that was repeated since: run `torchcbl measure"):
        read_correct(folder, "cbl-seed0")
    told: list[str] = []
    measure_study(folder, ["clean"], tell=told.append)
    assert [line.partition(":")[0] for line in told] == ["clean, cbl-seed0"]
    assert read_correct(folder, "cbl-seed0").shape == (3, 397)


def test_damaged_results_are_named(
    measured: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(measured[0], folder)
    path = of(folder, "clean", "cbl-seed0")
    good = path.read_text()
    for text, message in [
        (good[:500], "is damaged"),
        (good.replace('"seed": 0', '"seed": 1'), "it says it is clean of cbl-seed1"),
        (re.sub(r'"accuracy": \[0\.\d', '"accuracy": [0.1', good, count=1), "the accuracies say"),
        (good.replace('"brier"', '"brier_"'), "lacks \\['brier'\\]"),
    ]:
        assert text != good
        path.write_text(text)
        with pytest.raises(ValueError, match=f"cbl-seed0.json is damaged: .*{message}|cbl-seed0.json {message}"):
            read_correct(folder, "cbl-seed0")
        assert main(["measure", str(folder), "--only=clean"]) == 2
        assert "Delete the file and run the same `torchcbl measure` again" in capsys.readouterr().err
    path.write_text(good.replace('"schema": 1', '"schema": 9').replace('"brier"', '"brier_"'))
    with pytest.raises(ValueError, match="another version of torchcbl: it has schema 9, this torchcbl reads schema 1"):
        read_correct(folder, "cbl-seed0")


def test_another_number_of_samples_is_refused(
    measured: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "samples"
    shutil.copytree(measured[0], folder)
    of(folder, "corruptions", "cbl-seed0").unlink()
    assert main(["measure", str(folder), "--only=corruptions", "--samples=30"]) == 2
    error = capsys.readouterr().err
    assert f"n is {SAMPLES} there, 30 here. Name the same --samples, or delete" in error
    measure_study(folder, ["corruptions"], samples=SAMPLES)
    assert of(folder, "corruptions", "cbl-seed0").is_file()
    with pytest.raises(ValueError, match=f"n is {SAMPLES} there, 30 here"):  # now that all is there
        measure_study(folder, ["corruptions"], samples=30)


def test_pictures_are_of_the_study_s_own_data(measured: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(measured[0], folder)
    (folder / "data.json").write_text('{"sizes": {}}')
    with pytest.raises(ValueError, match="was made with other data: sizes"):
        measure_study(folder, ["clean"], data=tmp_path)
    page = write_measures(Measures.read(folder, KIND_NAMES)).read_text("utf-8")
    assert "data:image/png" not in page
    assert "Pictures of what the loop changed: " in page
    assert "was made with other data: sizes" in page


def test_a_kill_loses_one_result_at_most(trained: Path, measured: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    shutil.copytree(trained, folder)
    command = [
        sys.executable,
        "-m",
        "torchcbl",
        "measure",
        str(folder),
        "--only=clean,occlusion",
        f"--samples={SAMPLES}",
    ]
    process = subprocess.Popen([*command, "--jobs=2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)
    whole = sorted((folder / "measures").rglob("*.json"))
    assert 1 <= len(whole) < 12
    assert not list((folder / "measures").rglob(".*.json.*")) or whole
    kept = {path: path.stat().st_mtime_ns for path in whole}
    measure_study(folder, ["clean", "occlusion"], samples=SAMPLES)
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())
    for path in (folder / "measures").rglob("*.json"):
        other = measured[0] / path.relative_to(folder)
        kind = KINDS[path.parent.name].result
        one, two = (read_result(kind, each) for each in (path, other))
        for name in ("scores", "right", "disturbances", "clean"):
            assert getattr(one, name, None) == getattr(two, name, None), path


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_measure_alone", os._exit)
    with pytest.raises(
        ChildProcessError, match=r"was killed, or .* with 2 at work .* command again, with fewer --jobs"
    ):
        list(tasks.work_off([9, 9], None, jobs=2))  # type: ignore[list-item, arg-type]


def test_what_cannot_be_measured(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        ([str(tmp_path)], "holds no study: give a folder that `torchcbl compare` wrote"),
        ([str(trained), "--only=attaks"], "unknown kind of measure 'attaks': did you mean 'attacks'?"),
        ([str(trained), "--only=,"], "no kind of measure is named"),
        ([str(trained), "--only=noise"], "demo is on digits, which comes without recordings of noise to mix in"),
        ([str(trained), "--only=ambiguity"], "there are no human votes on digits, only CIFAR-10H"),
        ([str(trained), "--samples=1"], "samples must be at least 2, got 1"),
        ([str(trained), "--jobs=0"], "jobs must be at least 1, got 0"),
        ([str(trained), "--arms=untied"], "the study has no arm 'untied': it has standard, cbl"),
    ]:
        assert main(["measure", *words]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "recipe.toml").write_text((trained / "recipe.toml").read_text())
    assert main(["measure", str(tmp_path)]) == 2
    assert "holds no finished run of these arms" in capsys.readouterr().err
    copied = shutil.copytree(trained, tmp_path / "copied", ignore=shutil.ignore_patterns("measures"))
    (copied / "measures").write_text("in the way")
    assert main(["measure", str(copied)]) == 2
    assert f"could not write to {copied / 'measures'}: " in capsys.readouterr().err


def test_the_kinds_have_their_names() -> None:
    assert tuple(KINDS) == KIND_NAMES
    assert find_kind("attacks").name == "attacks"


def test_batches_do_not_matter(measured: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = measured[0]
    recipe = load_recipe(folder / "recipe.toml")
    run = Run(recipe, "cbl", 0, folder)
    ground = Ground(recipe, load_dataset(recipe), samples=23)
    found = []
    for size in (128, 7, 11):  # 23 = 2 * 11 + 1: no batch is left with a single image
        monkeypatch.setattr("torchcbl.lab.measures.graded.BATCH", size)
        found.append(CorruptionMeasure().measure(Subject(run, read_record(run.record)), ground))
    for other in found[1:]:
        for one, two in zip(found[0].disturbances, other.disturbances, strict=True):
            for a, b in zip(one.scores, two.scores, strict=True):
                assert a.accuracy == pytest.approx(b.accuracy, abs=1.01 / 23)  # an answer on the edge may turn
                assert a.loss == pytest.approx(b.loss, rel=1e-3, abs=1e-4)


def test_the_choice_of_images_is_stratified_and_the_same(trained: Path) -> None:
    data = load_data("digits", validation_size=200)
    few, more = choose(data, 40), choose(data, 10_000)
    assert len(few.pixels) == 40
    assert np.bincount(few.labels).tolist() == [4] * 10
    assert np.array_equal(few.indices, choose(data, 40).indices)
    assert len(more.pixels) == 397
    assert np.array_equal(few.pixels, more.pixels[few.indices])
    assert few.key != more.key


def test_a_damaged_cache_is_made_anew(trained: Path) -> None:
    gallery = choose(load_data("digits", validation_size=200), 30)
    calls = []

    def make(part: slice) -> np.ndarray:
        calls.append(part)
        return gallery.pixels[part]

    assert np.array_equal(gallery.show("x-1", make), gallery.pixels)
    gallery.show("x-1", make)
    assert len(calls) == 1
    path = gallery.folder / "x-1.images"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert np.array_equal(gallery.show("x-1", make), gallery.pixels)
    assert len(calls) == 2


def test_a_cache_that_cannot_be_written_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHCBL_CACHE", str(tmp_path / "file"))
    gallery = choose(load_data("digits", validation_size=200), 30)
    with pytest.warns(UserWarning, match="disturbed images could not be kept in .*set TORCHCBL_CACHE"):
        assert np.array_equal(gallery.show("x-1", lambda part: gallery.pixels[part]), gallery.pixels)


def test_real_cifar10_with_untrained_networks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All kinds on the real data: few images, networks that know nothing."""
    data = Path(os.environ.get("TORCHCBL_DATA") or "nowhere")
    if not (data / "cifar10" / "plain_text").is_dir() or not (data / "cifar10h" / "counts.npz").is_file():
        pytest.skip("real CIFAR-10 and CIFAR-10H are not here: set TORCHCBL_DATA to the folder that holds them")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("TORCHCBL_CACHE")  # decoding it once is enough
    monkeypatch.setattr("torchcbl.lab.measures.gallery.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setitem(KINDS, "attacks", AttackMeasure(SHORT))
    changes = {"seeds": "1", "epochs": "1", "width": "2", "context_dim": "4", "arms": '["standard", "cbl"]'}
    recipe = load_recipe("cifar10", changes)
    (tmp_path / "recipe.toml").write_text(recipe.as_toml())
    template = read_record(next((Path(__file__).parents[3] / "results").glob("cifar10-*/records/cbl-seed0.json")))
    form = Form((3, 32, 32), tuple(map(str, range(10))))
    for arm in recipe.arms:
        run = Run(recipe, arm, 0, tmp_path)
        save_weights(find_arm(arm).build(recipe, form.shape, 10, 0), run.model)
        form.save(run.model)
        write_record(tmp_path, replace(template, arm=arm, recipe=recipe.as_dict()))
    try:
        assert main(["measure", str(tmp_path), f"--data={data}", "--samples=10"]) == 0
    finally:
        monkeypatch.undo()
    printed = capsys.readouterr().out
    assert "ambiguity, cbl-seed0: cross entropy to the votes" in printed
    found = Measures.read(tmp_path, KIND_NAMES)
    assert {kind for kind, results in found.found.items() if results} == set(KIND_NAMES) - {"noise"}
    corrupted = found.found["corruptions"]["cbl-seed0"]
    assert isinstance(corrupted, Graded)
    assert len(corrupted.disturbances) == 19
    assert corrupted.skipped == {}
