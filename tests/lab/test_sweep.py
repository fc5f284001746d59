"""Sweeps: what they go over, that no test data are looked at, and the choice against numbers worked out by hand."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from torchcbl.lab.arms import find_arm
from torchcbl.lab.cli import main
from torchcbl.lab.codec import as_json
from torchcbl.lab.data import EpochBatches, Form, identity, load_dataset
from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.progress import silent
from torchcbl.lab.engines import Plan, make_engine
from torchcbl.lab.engines.base import Failure
from torchcbl.lab.progress import Display
from torchcbl.lab.ranks import ALONE
from torchcbl.lab.recipe import Recipe, load_recipe, read_recipe
from torchcbl.lab.records import EpochRecord, TrialRecord, read_record, read_trial
from torchcbl.lab.report.sweep import write_sweep
from torchcbl.lab.report.sweep.words import sentences
from torchcbl.lab.runs import Run
from torchcbl.lab.study import claim as claim_study
from torchcbl.lab.sweep.choice import choose, levels
from torchcbl.lab.sweep.feasible import checked, keys_read
from torchcbl.lab.sweep.grid import LOOP_KEYS, Setting, make_settings
from torchcbl.lab.sweep.plan import FIRST_SEED, Sweep, claim, load, save
from torchcbl.lab.sweep.results import Results, read_results
from torchcbl.lab.sweep.running import run_sweep
from torchcbl.lab.sweep.trials import Trial

RECIPE = load_recipe("demo", {"width": "4", "batch_size": "200", "epochs": "1", "seeds": "1"})
FORM = Form((1, 8, 8), tuple("0123456789"))
TINY = ["--set=width=4", "--set=batch_size=200", "--epochs=1", "--jobs=2"]


def labels(*over: str, recipe: Recipe = RECIPE, samples: int | None = None) -> list[str]:
    return [setting.label for setting in make_settings(over, recipe, samples)]


def a_sweep(*over: str, recipe: Recipe = RECIPE, seeds: int = 1, **changes: str) -> Sweep:
    return Sweep(recipe, changes.pop("arm", "cbl"), make_settings(over, recipe), seeds, recipe.epochs, **changes)


def run(sweep: Sweep, out: Path) -> tuple[Sweep, list[Failure], str]:
    stream = io.StringIO()
    display = Display(Console(file=stream, highlight=False, soft_wrap=True))
    return *run_sweep(sweep, out, display, make_engine("local", Plan(2, 1))), stream.getvalue()


def test_a_grid_is_every_combination_in_the_order_of_the_recipe() -> None:
    expected = ["steps=1,alpha=0.0", "steps=1,alpha=0.3", "steps=2,alpha=0.0", "steps=2,alpha=0.3"]
    assert labels("alpha=0,0.3", "steps=1,2") == expected
    assert labels("augment=true,false") == ["augment=true", "augment=false"]
    assert labels("learning_rate=1e-3, 3e-4") == ["learning_rate=0.001", "learning_rate=0.0003"]


def test_several_sites_are_joined_by_plus() -> None:
    settings = make_settings(["sites=block1+block3,block3,all"], RECIPE)
    assert [setting.applied(RECIPE).sites for setting in settings] == [("block1", "block3"), ("block3",), ()]
    again = make_settings(["sites=" + ",".join(one.label.removeprefix("sites=") for one in settings)], RECIPE)
    assert again == settings


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "got no --over: for example"),
        (["steps"], "--over needs key=value,value, got 'steps'"),
        (["step=1,2"], "unknown recipe key 'step': did you mean 'steps'"),
        (["steps=1,two"], "'steps' must be a whole number, got \"two\""),
        (["steps=0,1"], "'steps' must be >= 1"),
        (["steps=1,,2"], "--over steps has an empty value"),
        (["alpha=0,0.0"], "--over alpha lists 0.0 twice"),
        (["steps=1", "steps=2"], "--over steps is given twice"),
        (["adapter=film,flim"], "'adapter' must be one of film, gate"),
        (["sites=block2+block1"], "'sites' must be out of block1, block2, block3, in this order"),
        (["seeds=1,2"], "cannot go over 'seeds': every setting gets the same"),
        (["arms=cbl,standard"], "cannot go over 'arms'"),
        (["name=a,b"], "cannot go over 'name'"),
        (["data=digits,cifar10"], "cannot go over 'data'"),
        (["validation_size=100,200"], "cannot go over 'validation_size': it changes the data"),
        (["noise=0,0.5"], "cannot go over 'noise': data = \"digits\" does not read it"),
        (["image_size=16,32"], "cannot go over 'image_size'"),
    ],
)
def test_bad_keys_and_values_are_refused_by_name(over: list[str], message: str) -> None:
    with pytest.raises((ValueError, TypeError)) as caught:
        make_settings(over, RECIPE)
    assert message in str(caught.value)


def test_a_random_subset_is_the_same_every_time_and_grows() -> None:
    over = ("steps=1,2,3,4", "alpha=0,0.1,0.2")
    whole, drawn = labels(*over), {n: labels(*over, samples=n) for n in (2, 5, 12)}
    assert drawn[12] == whole
    assert set(drawn[2]) < set(drawn[5])
    assert drawn[2] == ["steps=2,alpha=0.0", "steps=4,alpha=0.1"]
    assert set(labels("alpha=0.2,0.1,0", "steps=4,3,2,1", samples=2)) == set(drawn[2])
    for samples in (0, 13):
        with pytest.raises(ValueError, match=rf"--samples must be in 1..12.*got {samples}"):
            labels(*over, samples=samples)


def test_runs_go_seed_by_seed_and_standard_is_always_among_them() -> None:
    trials = a_sweep("steps=1,2", seeds=2).trials(Path("out"))
    assert [trial.name for trial in trials] == [
        *("standard-seed1000", "cbl,steps=1-seed1000", "cbl,steps=2-seed1000"),
        *("standard-seed1001", "cbl,steps=1-seed1001", "cbl,steps=2-seed1001"),
    ]
    assert [trial.recipe.steps for trial in trials[:3]] == [RECIPE.steps, 1, 2]
    assert not {trial.seed for trial in trials} & set(range(100))


def test_standard_is_trained_along_once_for_every_value_that_concerns_it() -> None:
    sweep = a_sweep("width=4,8", "steps=1,2", "alpha=0,0.3")
    assert [one.label for one in sweep.references] == ["width=4", "width=8"]
    assert len(sweep.trials(Path("out"))) == 8 + 2


@pytest.mark.parametrize(
    ("arm", "plain"),
    [
        ("cbl-gate", "standard"),
        ("as-released-cbl", "as-released-standard-no-dropout"),
        ("as-released-cbl-dropout", "as-released-standard"),
    ],
)
def test_an_arm_is_held_against_the_network_that_it_stands_on(arm: str, plain: str, tmp_path: Path) -> None:
    results = by_hand(tmp_path, arm=arm)
    assert {one.arm for one in results.references} == {plain}
    written = write_sweep(results, tmp_path)
    assert f"{plain}, without a loop: 91.00 ± 1.73%. The best minus {plain}: +1.00 points" in written.text
    assert f"dashed: {plain}, without a loop" in written.page.read_text("utf-8")
    assert set(read_recipe(written.best).arms) == {*RECIPE.arms, plain, arm}


def test_the_keys_of_the_loop_are_those_that_standard_does_not_read_and_cbl_does() -> None:
    read = {name: keys_read(find_arm(name), a_sweep("steps=2"), FORM) for name in ("standard", "cbl", "cbl-gate")}
    assert not read["standard"] & set(LOOP_KEYS)
    assert read["cbl"] >= set(LOOP_KEYS)
    assert "steps" in read["cbl-gate"]
    assert "adapter" not in read["cbl-gate"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arm": "cbl2"}, "--arm must be one that is trained.*got 'cbl2'"),
        ({"arm": "standard"}, "no plain network, got 'standard'"),
        ({"arm": "as-released-standard"}, "no plain network"),
        ({"arm": "loop-free"}, "one that is trained"),
        ({"by": "test"}, "--by must be one of accuracy, loss, got 'test'"),
        ({"seeds": 0}, "'seeds' must be >= 1"),
        ({"epochs": 0}, "'epochs' must be >= 1"),
        ({"settings": ()}, "at least one setting"),
    ],
)
def test_what_no_sweep_can_be(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(a_sweep("steps=1,2"), **changes)  # type: ignore[arg-type]


def test_arms_that_no_value_changes_and_arms_that_are_told_the_labels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="arm 'cbl-gate' does not read the recipe key 'adapter'"):
        run(a_sweep("adapter=film,gate", arm="cbl-gate"), tmp_path)
    with pytest.raises(ValueError, match="arm 'label-context' is told the labels"):
        run(a_sweep("steps=1,2", arm="label-context"), tmp_path)
    for arm in ("wider-params", "wider-flops", "ensemble"):  # their size follows that of `cbl`, their rest does not
        with pytest.raises(ValueError, match=f"arm '{arm}' does not read the recipe key 'alpha'"):
            run(a_sweep("alpha=0,0.3", arm=arm), tmp_path)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arm", "over", "expected"),
    [
        ("untied", ("schedule=synchronous,repropagate", "alpha=0,0.3"), {"schedule", "alpha"}),  # the first is refused
        ("wider-params", ("adapter=film,concat", "alpha=0,0.3"), {"adapter"}),
        ("ensemble", ("steps=2,4", "weights=last,uniform"), {"steps"}),
    ],
)
def test_the_keys_that_an_arm_depends_on(arm: str, over: tuple[str, ...], expected: set[str]) -> None:
    sweep = a_sweep(*over, arm=arm)
    assert keys_read(find_arm(arm), sweep, load_dataset(RECIPE).form) & set(sweep.keys) == expected


def test_a_sweep_is_kept_and_extended_but_never_mixed(tmp_path: Path) -> None:
    first = dataclasses.replace(a_sweep("alpha=0,0.3", "sites=all,block3"), refused={"alpha=0.0,sites=all": "why"})
    save(first, tmp_path)
    assert load(tmp_path) == first
    both = claim(a_sweep("alpha=0.3,0.5", "sites=block3", seeds=3), tmp_path)
    assert [one.label for one in both.settings] == [
        *labels("alpha=0,0.3", "sites=all,block3"),
        "alpha=0.5,sites=block3",
    ]
    assert (both.seeds, both.refused, both.ended) == (3, {}, False)
    assert claim(a_sweep("alpha=0", "sites=all"), tmp_path).seeds == 1
    for other, message in (
        (a_sweep("alpha=0,0.3"), "what it goes over is alpha sites there, alpha here"),
        (a_sweep("alpha=0", "sites=all", arm="no-context"), "the arm is cbl there, no-context here"),
        (a_sweep("alpha=0", "sites=all", recipe=dataclasses.replace(RECIPE, width=8)), "width is 4 there, 8 here"),
        (dataclasses.replace(first, epochs=7), "the number of epochs is 1 there, 7 here"),
    ):
        with pytest.raises(ValueError, match=rf"belongs to another sweep: .*{message}"):
            claim(other, tmp_path)


def test_sweeps_and_studies_keep_out_of_each_others_folders(tmp_path: Path) -> None:
    save(a_sweep("steps=1"), tmp_path / "sweep")
    with pytest.raises(ValueError, match="holds a sweep"):
        claim_study(RECIPE, tmp_path / "sweep")
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "recipe.toml").write_text(RECIPE.as_toml())
    with pytest.raises(ValueError, match="holds a study"):
        claim(a_sweep("steps=1"), tmp_path / "study")
    with pytest.raises(FileNotFoundError, match="holds no sweep"):
        load(tmp_path / "study")


def test_a_kill_between_the_two_files_of_a_sweep_leaves_the_folder_usable(tmp_path: Path) -> None:
    save(a_sweep("steps=1"), tmp_path)
    (tmp_path / "recipe.toml").unlink()
    with pytest.raises(FileNotFoundError, match="lacks recipe.toml: run the same `torchcbl sweep` again"):
        load(tmp_path)
    assert claim(a_sweep("steps=2"), tmp_path) == a_sweep("steps=2")


@pytest.mark.parametrize("over", ["width=4,8", "image_size=8,16"])
def test_a_sweep_that_was_begun_on_other_data_is_refused(over: str, tmp_path: Path) -> None:
    folders, recipe = [tmp_path / "a", tmp_path / "b"], load_recipe("images", {"seeds": "1"})
    for shift, folder in enumerate(folders):
        for label, number in itertools.product("xy", range(4)):
            (folder / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number + shift,) * 3).save(folder / label / f"{number}.png")
    sweep, out = a_sweep(over, recipe=recipe), tmp_path / "out"
    checked(sweep, out, folders[0], silent)
    checked(sweep, out, folders[1], silent)  # nothing has been trained: the folder is free
    (out / "runs" / "cbl").mkdir(parents=True)
    (out / "runs" / "cbl" / "checkpoint.ckpt").touch()
    checked(sweep, out, folders[1], silent)
    with pytest.raises(ValueError, match="was made with other data: digest there"):
        checked(sweep, out, folders[0], silent)


@pytest.mark.parametrize("change", [{"settings": [{"steps": "x"}]}, {"settings": 3}, {"arm": "cbl2"}])
def test_a_damaged_sweep_says_what_to_do(tmp_path: Path, change: dict[str, object]) -> None:
    save(a_sweep("steps=1"), tmp_path)
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"sweep.json is damaged .* finished runs are kept"):
        load(tmp_path)


def test_a_sweep_of_another_version_says_so(tmp_path: Path) -> None:
    save(a_sweep("steps=1"), tmp_path)
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 9}))
    with pytest.raises(ValueError, match=r"sweep.json was written by another version of torchcbl: it has schema 9"):
        load(tmp_path)


@pytest.fixture
def no_test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make whoever asks for test batches fail."""
    whole = ImageDataset.batches

    def batches(self: ImageDataset, part: str, *arguments: object, **options: object) -> EpochBatches:
        assert part != "test", "test data were looked at"
        return whole(self, part, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDataset, "batches", batches)


@pytest.mark.usefixtures("no_test_data")
def test_no_test_data_are_looked_at_and_the_rest_is_as_in_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = a_sweep("steps=1").trial(tmp_path / "sweep", "cbl", Setting((("steps", 1),)), 1000)
    trial.train(lambda state: None, ALONE)
    in_study = Run(trial.recipe, "cbl", 1000, tmp_path / "study")
    with pytest.raises(AssertionError, match="test data were looked at"):
        in_study.train(lambda state: None, ALONE)
    monkeypatch.undo()
    in_study.train(lambda state: None, ALONE)

    tried, tested = trial.read(), read_record(in_study.record)
    assert tried is not None
    assert [timeless(epoch) for epoch in tried.epochs] == [timeless(epoch) for epoch in tested.epochs]
    assert (tried.flops, tried.parameters, tried.recipe) == (tested.flops, tested.parameters, tested.recipe)
    assert "test" not in json.loads(trial.record.read_text())
    assert not trial.checkpoint.exists()
    assert not trial.model.exists()

    trial.record.write_bytes(in_study.record.read_bytes())
    with pytest.raises(ValueError, match=r"the file holds unknown \['test'\]"):
        trial.read()


def timeless(epoch: EpochRecord) -> EpochRecord:
    return dataclasses.replace(epoch, seconds=0.0)


def test_what_cannot_be_had_is_named_with_the_library_s_reason(tmp_path: Path) -> None:
    sweep = checked(a_sweep("schedule=repropagate,literal", "sites=all,block3"), tmp_path, None, silent)
    assert list(sweep.refused) == ["schedule=literal,sites=all"]
    assert "recomputes the output from the top site alone" in sweep.refused["schedule=literal,sites=all"]
    assert [one.label for one in sweep.possible] == labels("schedule=repropagate", "sites=all,block3") + labels(
        "schedule=literal", "sites=block3"
    )
    with pytest.raises(ValueError, match="none of the 1 settings can be had; schedule=literal,sites=all: the adapter"):
        run(a_sweep("schedule=literal", "sites=all"), tmp_path)
    assert not (tmp_path / "runs").exists()


def test_killed_and_stopped_the_same_command_goes_on_and_what_it_chose_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL after the first finished run, then to the end; then a run of what was chosen, tested."""
    out = tmp_path / "out"
    over = ["--over=schedule=repropagate,literal", "--over=sites=all,block3"]
    words = ["sweep", "demo", *over, "--seeds=1", *TINY, f"--out={out}"]
    first = subprocess.Popen([sys.executable, "-m", "torchcbl", *words], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list((out / "trials").glob("*.json")):
        assert time.monotonic() < deadline, "no run has finished"
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -signal.SIGKILL
    assert not (out / "best.toml").exists()
    assert not load(out).ended
    before = {path: path.stat().st_mtime_ns for path in (out / "trials").glob("*.json")}

    assert main(words) == 0
    said = capsys.readouterr().out
    assert said.index("schedule=literal,sites=all cannot be had: the adapter at") < said.index("epoch 1/1")
    assert "4 runs: settings of cbl: 3, of standard: 1, seeds of each: 1" in said
    assert "of 4 runs are finished already" in said
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    assert len(list((out / "trials").glob("*.json"))) == 4
    assert "What cannot be had" in (out / "sweep.html").read_text()
    written = [path for path in out.rglob("*") if path.suffix in (".json", ".csv") and path.name != identity.FILE]
    assert not [path for path in written if '"test' in path.read_text()]

    chosen = read_recipe(out / "best.toml")
    assert (chosen.name, chosen.epochs, chosen.seeds) == ("demo-best", 10, 5)
    assert {"standard", "cbl"} <= set(chosen.arms)
    sites = "+".join(chosen.sites) or "all"
    assert f"Best of 3 settings of cbl: schedule={chosen.schedule},sites={sites}," in said
    study = Run(dataclasses.replace(chosen, epochs=1), "cbl", 0, tmp_path / "study")
    study.train(lambda state: None, ALONE)
    assert read_record(study.record).test.n == 397
    assert study.seed < FIRST_SEED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--over", "steps=1,x"], "'steps' must be a whole number"),
        (["--over", "epochs=1,2", "--epochs", "3"], "--epochs and --over epochs both say how long to train"),
        (["--finish", "--engine", "ray", "--devices", "2"], "leave out --engine, --devices"),
        (["--over", "steps=1", "--finish"], "--finish trains nothing and takes the sweep as"),
        (["--finish"], "holds no sweep"),
        (["--over", "steps=1", "--by", "test"], "--by must be one of accuracy, loss"),
        (["--over", "steps=1", "--jobs", "0"], "jobs must be >= 1, got 0"),
        (["--over", "steps=1", "--data", "."], "is on digits, which come with scikit-learn"),
    ],
)
def test_the_command_says_what_is_wrong(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "demo", *words, "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()


def test_help_has_examples_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom torchcbl.lab.cli import main\n"
        "try:\n    main(['sweep', '--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "import torchcbl.lab.sweep.grid, torchcbl.lab.sweep.plan\n"
        "assert not {'torch', 'numpy', 'scipy', 'matplotlib'} & set(sys.modules)\n"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert "examples:\n  torchcbl sweep demo --over steps=1,2,3" in finished.stdout


# The choice, by hand. Accuracies (%) of steps = 1, 2, 3 under alpha = 0 and 0.3, by seed.

BY_HAND: Mapping[str, tuple[float, ...]] = {
    "steps=1,alpha=0.0": (90.0, 91.0, 92.0),  # mean 91, sd 1
    "steps=1,alpha=0.3": (91.0, 91.0, 91.0),  # a tie with the one above, at the same cost
    "steps=2,alpha=0.0": (93.0, 91.0, 92.0),  # mean 92, sd 1, and cheaper than the best with the same mean
    "steps=2,alpha=0.3": (88.0, 89.0, 90.0),  # mean 89
    "steps=3,alpha=0.0": (92.0, 90.0, 94.0),  # mean 92, sd 2: the same mean at a higher cost
    "steps=3,alpha=0.3": (91.5, 91.5, 91.5),
}
STANDARD = (90.0, 90.0, 93.0)
SEEDS = (1000, 1001, 1002)


def a_record(trial: Trial, accuracy: float, loss: float, flops: float) -> TrialRecord:
    loops = 1 if "standard" in trial.arm else trial.recipe.steps + 1
    epoch = EpochRecord(1, 0.001, 1.0, (9.0,) * (loops - 1) + (loss,), (0.1,) * (loops - 1) + (accuracy / 100,), 2.0)
    return TrialRecord(
        schema=1,
        study=trial.recipe.name,
        arm=trial.arm,
        seed=trial.seed,
        recipe=trial.recipe.as_dict(),
        versions={"torchcbl": "0.1.0", "torch": "2.13.0"},
        machine={"system": "Linux", "cores": 2, "threads": 1, "device": "cpu"},
        parameters={"backbone": 1000, "added": 10},
        flops={"first": 1e6, "step": flops - 1e6, "inference": flops, "training": 3 * flops},
        epochs=(epoch,),
        seconds={"training": 2.0, "total": 3.0},
        finished="2026-01-01T00:00:00+00:00",
    )


def by_hand(
    out: Path,
    scores: Mapping[str, tuple[float, ...]] = BY_HAND,
    standard: tuple[float, ...] = STANDARD,
    losses: Mapping[str, float | tuple[float, ...]] | None = None,
    **changes: object,
) -> Results:
    settings = make_settings(["steps=1,2,3", "alpha=0,0.3"], RECIPE)
    sweep = Sweep(RECIPE, "cbl", tuple(one for one in settings if one.label in scores), 3, 1, ended=True)
    sweep = dataclasses.replace(sweep, **changes)  # type: ignore[arg-type]
    save(sweep, out)
    for arm, setting, values, loss, flops in [
        *((sweep.arm, one, scores[one.label], (losses or {}).get(one.label, 0.5), cost(one)) for one in sweep.settings),
        (sweep.plain, Setting(), standard, 0.5, 1e6),
    ]:
        for index, (seed, value) in enumerate(zip(SEEDS, values, strict=False)):
            trial = sweep.trial(out, arm, setting, seed)
            trial.record.parent.mkdir(parents=True, exist_ok=True)
            found = loss[index] if isinstance(loss, tuple) else loss
            trial.record.write_text(as_json(a_record(trial, value, found, flops)))
    return read_results(load(out), out)


def cost(setting: Setting) -> float:
    return 1e6 * (1 + int(str(dict(setting.values)["steps"])))


def test_the_best_mean_is_chosen_and_ties_go_to_the_cheaper(tmp_path: Path) -> None:
    choice = choose(by_hand(tmp_path))
    assert [(one.setting.label, one.mean) for one in choice.ranking] == [
        ("steps=2,alpha=0.0", 92.0),
        ("steps=3,alpha=0.0", 92.0),
        ("steps=3,alpha=0.3", 91.5),
        ("steps=1,alpha=0.0", 91.0),
        ("steps=1,alpha=0.3", 91.0),
        ("steps=2,alpha=0.3", 89.0),
    ]
    assert choice.best.std == pytest.approx(1.0)
    assert choice.best.standard_error == pytest.approx(1 / math.sqrt(3))
    assert choice.best.cost == (3e6, 9e6)


def test_the_cheapest_within_one_standard_error(tmp_path: Path) -> None:
    """The best has mean 92 and standard error 0.577: 91.5 is within, 91 is not, and costs decide."""
    assert choose(by_hand(tmp_path / "none")).frugal is not None
    assert choose(by_hand(tmp_path / "none")).frugal.setting.label == "steps=2,alpha=0.0"  # type: ignore[union-attr]
    cheap = {**BY_HAND, "steps=1,alpha=0.3": (91.43, 91.43, 91.43)}
    assert choose(by_hand(tmp_path / "in", cheap)).frugal.setting.label == "steps=1,alpha=0.3"  # type: ignore[union-attr]
    out_of_it = {**BY_HAND, "steps=1,alpha=0.3": (91.42, 91.42, 91.42)}
    assert choose(by_hand(tmp_path / "out", out_of_it)).frugal.setting.label == "steps=2,alpha=0.0"  # type: ignore[union-attr]


def test_chosen_on_the_other_seeds_the_score_is_less(tmp_path: Path) -> None:
    """Without 1000, steps=3 is best (92) and scores 92 there; without 1001 too (93): 90; without 1002 steps=2: 92."""
    assert choose(by_hand(tmp_path)).left_out == pytest.approx((92 + 90 + 92) / 3)


def test_the_marginal_mean_of_a_value_is_over_all_settings_that_have_it(tmp_path: Path) -> None:
    found = {f"{one.key}={one.label}": (one.mean, len(one.means)) for one in levels(by_hand(tmp_path).complete)}
    assert found == {
        "steps=1": (91.0, 2),
        "steps=2": (90.5, 2),
        "steps=3": (91.75, 2),
        "alpha=0.0": (pytest.approx(275 / 3), 3),
        "alpha=0.3": (pytest.approx(271.5 / 3), 3),
    }


def test_every_setting_is_held_against_standard_with_the_same_seeds(tmp_path: Path) -> None:
    """The chosen minus standard: 3, 1, -1; t = 1 / (2 / sqrt(3)); its p is corrected for six settings."""
    against = choose(by_hand(tmp_path)).against
    assert against[0] is not None
    assert against[0].differences == pytest.approx((3.0, 1.0, -1.0))
    assert against[0].t_test is not None
    assert against[0].t_test.t == pytest.approx(math.sqrt(3) / 2)
    assert against[0].p_holm == 1.0
    assert {one.num_comparisons for one in against if one is not None} == {6}


def test_by_loss_less_is_better_and_what_diverged_comes_last(tmp_path: Path) -> None:
    losses = {"steps=1,alpha=0.3": 0.2, "steps=2,alpha=0.0": math.nan, "steps=2,alpha=0.3": 0.3}
    results = by_hand(tmp_path, losses=losses, by="loss")
    ranking = [one.setting.label for one in choose(results).ranking]
    assert (ranking[:2], ranking[-1]) == (["steps=1,alpha=0.3", "steps=2,alpha=0.3"], "steps=2,alpha=0.0")
    assert "0.2000 ± 0.0000" in write_sweep(results, tmp_path).text


def test_by_loss_a_choice_that_diverges_on_the_seed_left_out_is_said_to(tmp_path: Path) -> None:
    """Without 1002 steps=2 is best, and on 1002 it diverges: no number stands for that."""
    losses = dict.fromkeys(BY_HAND, (0.5, 0.5, 0.5)) | {"steps=2,alpha=0.0": (0.4, 0.4, math.nan)}
    text = write_sweep(by_hand(tmp_path, losses=losses, by="loss"), tmp_path).text
    assert "Chosen on all seeds but one, the choice diverged on one that was left out." in text
    assert "nan" not in text.partition("Chosen on all seeds")[2].partition(".")[0]


def test_a_setting_with_a_failed_run_is_not_chosen(tmp_path: Path) -> None:
    results = by_hand(tmp_path, {**BY_HAND, "steps=2,alpha=0.0": (99.0, 99.0)})
    assert choose(results).best.setting.label == "steps=3,alpha=0.0"
    text = write_sweep(results, tmp_path).text
    assert "5 of 6 settings have all 3 runs finished. Not chosen from: steps=2,alpha=0.0 (2 of 3)." in text


def test_stopped_early_it_is_judged_by_the_seeds_that_all_have(tmp_path: Path) -> None:
    """The third seed is there for one setting alone, and one setting has not begun: two seeds are judged by."""
    scores = {label: values[:2] for label, values in BY_HAND.items()}
    scores |= {"steps=2,alpha=0.3": (80.0, 80.0, 99.0), "steps=3,alpha=0.3": ()}
    results = by_hand(tmp_path, scores, ended=False)
    assert results.seeds == (1000, 1001)
    assert choose(results).best.setting.label == "steps=2,alpha=0.0"
    text = write_sweep(results, tmp_path).text
    assert "Not chosen from: steps=3,alpha=0.3 (0 of 2). Stopped early: judged by 2 of 3 seeds." in text
    assert main(["sweep", "demo", "--finish", "--out", str(tmp_path)]) == 0
    assert read_recipe(tmp_path / "best.toml").steps == 2
    with pytest.raises(ValueError, match="no setting has all 3 runs finished"):
        choose(by_hand(tmp_path / "nothing", dict.fromkeys(BY_HAND, ())))


def test_records_of_other_runs_are_refused(tmp_path: Path) -> None:
    by_hand(tmp_path)
    sweep = load(tmp_path)
    one, other = (sweep.trial(tmp_path, "cbl", setting, 1000) for setting in sweep.settings[:2])
    one.record.write_bytes(other.record.read_bytes())
    with pytest.raises(ValueError, match="is of another run: alpha is 0.3 there, 0.0 here"):
        one.read()
    one.record.write_text("{")
    with pytest.raises(ValueError, match=r"is damaged.*same `torchcbl sweep` again"):
        read_trial(one.record)


def test_runs_in_another_number_of_processes_are_not_mixed(tmp_path: Path) -> None:
    results = by_hand(tmp_path, {"steps=2,alpha=0.0": (92.0,)}, seeds=1)
    trial = results.sweep.trial(tmp_path, "cbl", results.sweep.settings[0], 1000)
    plain = json.loads(trial.record.read_text())
    trial.record.write_text(json.dumps({**plain, "machine": {**plain["machine"], "devices": 2}}))
    with pytest.raises(ValueError, match=r"record cbl,steps=2,alpha=0.0-seed1000 in .* in 2 processes a run, here"):
        run(a_sweep("steps=2", "alpha=0"), tmp_path)


def test_the_page_says_what_the_choice_is_worth(tmp_path: Path) -> None:
    written = write_sweep(by_hand(tmp_path), tmp_path)
    page, text = written.page.read_text(), written.text
    for said in (
        "Best of 6 settings of cbl: steps=2,alpha=0.0, 92.00 ± 1.00%",
        "1 other scored the same and cost no less",
        "too good on average: it is the best of 6",
        "the choice scores 91.33%",
        "No cheaper setting is within one standard error (0.58) of the best",
        "standard, without a loop: 91.00 ± 1.73%. The best minus standard: +1.00 points",
        "3 of 6 settings are better than it on average. For none is a difference shown",
    ):
        assert said in text
        assert said in page
    assert page.count("<svg") == 2
    assert "Every value meets every combination of the others" in page
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert f"torchcbl compare {tmp_path / 'best.toml'}" in page
    best = written.best.read_text()
    assert "best of 6 settings of cbl by validation accuracy" in best
    recipe = read_recipe(written.best)
    assert recipe == dataclasses.replace(RECIPE, name="demo-best", steps=2, alpha=0.0)
    assert main(["report", str(tmp_path)]) == 0


def test_a_score_chosen_at_the_end_stays_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is looked at on test data must not go back to another score by a later `report`."""
    by_hand(tmp_path, losses={"steps=3,alpha=0.0": 0.1})
    assert main(["sweep", "demo", "--finish", f"--out={tmp_path}", "--by=loss"]) == 0
    chosen = (tmp_path / "best.toml").read_text("utf-8")
    assert "by validation loss" in chosen
    assert read_recipe(tmp_path / "best.toml").steps == 3
    assert main(["report", str(tmp_path)]) == 0
    assert (tmp_path / "best.toml").read_text("utf-8") == chosen
    assert main(["sweep", "demo", "--finish", f"--out={tmp_path}", "--by=test"]) == 2
    assert "--by must be one of accuracy, loss, got 'test'" in capsys.readouterr().err
    assert load(tmp_path).by == "loss"


def test_one_setting_and_one_seed_promise_nothing(tmp_path: Path) -> None:
    results = by_hand(tmp_path, {"steps=2,alpha=0.0": (92.0,)}, (), seeds=1)
    text = write_sweep(results, tmp_path).text
    assert "One setting of cbl: steps=2,alpha=0.0, 92.00%" in text
    assert "Nothing was chosen" in text
    assert "With one seed there is no standard error" in text
    assert "nothing says whether any setting beats no loop" in text


def test_a_standard_that_does_best_elsewhere_and_a_shorter_training_are_said(tmp_path: Path) -> None:
    recipe = dataclasses.replace(RECIPE, epochs=9)
    sweep = dataclasses.replace(a_sweep("width=4,8", recipe=recipe), epochs=1, ended=True)
    save(sweep, tmp_path)
    for arm, width, accuracy in (("cbl", 4, 95.0), ("cbl", 8, 94.0), ("standard", 4, 90.0), ("standard", 8, 96.0)):
        trial = sweep.trial(tmp_path, arm, Setting((("width", width),)), 1000)
        trial.record.parent.mkdir(parents=True, exist_ok=True)
        trial.record.write_text(as_json(a_record(trial, accuracy, 0.5, 1e6 * width)))
    written = write_sweep(read_results(sweep, tmp_path), tmp_path)
    assert "The best minus standard: +5.00 points" in written.text
    assert "standard does best at width=8 (96.00%), which is not what is best for cbl" in written.text
    assert "Chosen after 1 epoch, where the recipe trains for 9" in written.text
    assert (read_recipe(written.best).width, read_recipe(written.best).epochs) == (4, 9)


def test_the_correction_counts_settings_that_cannot_be_compared(tmp_path: Path) -> None:
    results = by_hand(tmp_path)
    choice = choose(results)
    told = sentences(results, dataclasses.replace(choice, against=(*choice.against[:-1], None)))
    assert "of 5 settings are better than it on average." in told[4]
    assert "For none is a difference shown, corrected for 6 tests (Holm)" in told[4]
