import csv
import dataclasses
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from torchcbl.lab.checkpoints import DurableCheckpointIO
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.recipe import ARM_NAMES, DERIVED_ARMS, Recipe, load_recipe
from torchcbl.lab.records import Record, read_record
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.training import train

TINY = {"width": "4", "epochs": "3", "batch_size": "100", "validation_size": "100", "halve_every": "1"}
ONE_ANSWER = {
    "standard",
    "wider-params",
    "wider-flops",
    "ensemble",
    "no-loop-deep-supervision",
    "as-released-standard",
    "as-released-standard-no-dropout",
}


@pytest.fixture(autouse=True)
def any_algorithm() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)  # the Trainer has switched them on


def make_run(out: Path, arm: str = "cbl", **changes: str) -> Run:
    recipe = load_recipe("demo", {**TINY, **changes})
    (out).mkdir(exist_ok=True)
    (out / "recipe.toml").write_text(recipe.as_toml())
    return Run(recipe, arm, 0, out)


def numbers(record: Record) -> Record:
    """A record without what differs between two sittings."""
    epochs = tuple(dataclasses.replace(epoch, seconds=0.0) for epoch in record.epochs)
    return dataclasses.replace(record, epochs=epochs, seconds={}, finished="")


def weights(run: Run) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.model.iterdir()}


class Killed(BaseException):
    pass


def interrupted_after(epochs: int, run: Run) -> None:
    """Stop in the middle of the following epoch, with nothing but the checkpoint left."""

    def stop(state: RunState) -> None:
        if state.epoch_finished and state.epoch == epochs + 1:
            raise Killed

    with pytest.raises(Killed):
        train(run, stop)


@pytest.mark.parametrize("arm", [arm for arm in ARM_NAMES if arm not in DERIVED_ARMS])
def test_a_run_leaves_record_weights_and_logs(arm: str, tmp_path: Path) -> None:
    run = make_run(tmp_path, arm)
    states: list[RunState] = []
    record = train(run, states.append)
    steps = 1 if arm in ONE_ANSWER else 1 + run.recipe.steps
    assert read_record(run.record) == record
    assert record.recipe == run.recipe.as_dict()
    assert [epoch.epoch for epoch in record.epochs] == [1, 2, 3]
    assert [epoch.learning_rate for epoch in record.epochs] == [1e-3, 5e-4, 2.5e-4]
    assert all(len(epoch.validation_loss) == len(epoch.validation_accuracy) == steps for epoch in record.epochs)
    assert (record.test.n, len(record.test.accuracy)) == (397, steps)
    assert record.epochs[-1].train_loss < record.epochs[0].train_loss
    assert record.machine["threads"] == 1
    if not arm.startswith(("wider", "as-released")):
        assert record.parameters["backbone"] == 11534
    adds_nothing = ONE_ANSWER - {"ensemble", "no-loop-deep-supervision"}
    assert (record.parameters["added"] > 0) == (arm not in adds_nothing)
    assert record.flops["inference"] == record.flops["first"] + (steps - 1) * record.flops["step"]
    assert record.flops["training"] > 2 * record.flops["inference"] > 0
    assert 0 < record.seconds["training"] <= record.seconds["total"]
    assert [(state.epoch, state.done) for state in states] == [(1, 1 / 3), (2, 2 / 3), (3, 1.0)]
    assert states[-1].validation_accuracy == record.epochs[-1].validation_accuracy[-1]
    assert not run.checkpoint.exists()
    with (run.folder / "logs" / "metrics.csv").open() as stream:
        assert [float(row["train_loss"]) for row in csv.DictReader(stream)] == [
            epoch.train_loss for epoch in record.epochs
        ]
    assert list((run.folder / "logs").glob("events.out.tfevents*"))


@pytest.mark.parametrize("arm", ["standard", "cbl", "untied", "as-released-cbl-dropout"])
def test_an_interrupted_run_ends_with_the_same_numbers_bit_for_bit(arm: str, tmp_path: Path) -> None:
    whole, broken = make_run(tmp_path / "whole", arm), make_run(tmp_path / "broken", arm)
    expected = train(whole)
    interrupted_after(1, broken)
    interrupted_after(2, broken)
    broken.model.mkdir()
    for half in (broken.folder / ".checkpoint.ckpt.x1y2", broken.model / ".config.json.x1y2"):
        half.write_text("a kill in the middle of a write")
    states: list[RunState] = []
    record = train(broken, states.append)
    assert [state.epoch for state in states] == [3], "finished epochs are not repeated"
    assert numbers(record) == numbers(expected)
    assert weights(broken) == weights(whole)
    assert not list(broken.folder.rglob(".*"))
    assert record.seconds["training"] == sum(epoch.seconds for epoch in record.epochs)
    with (broken.folder / "logs" / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 3


def test_a_run_killed_before_its_record_only_tests_again(tmp_path: Path) -> None:
    whole, broken = make_run(tmp_path / "whole"), make_run(tmp_path / "broken")
    expected = train(whole)
    broken.record.mkdir(parents=True)  # the record cannot be written, everything before it can
    with pytest.raises(OSError, match=r"cbl-seed0\.json"):
        train(broken)
    broken.record.rmdir()
    states: list[RunState] = []
    assert numbers(train(broken, states.append)) == numbers(expected)
    assert states == []
    with (broken.folder / "logs" / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 3


def test_a_damaged_checkpoint_means_a_fresh_start_with_a_warning(tmp_path: Path) -> None:
    whole, broken = make_run(tmp_path / "whole"), make_run(tmp_path / "broken")
    expected = train(whole)
    interrupted_after(1, broken)
    broken.checkpoint.write_bytes(broken.checkpoint.read_bytes()[:1000])
    with pytest.warns(RuntimeWarning, match=r"checkpoint\.ckpt is damaged .* starts anew"):
        record = train(broken)
    assert numbers(record) == numbers(expected)


def test_a_checkpoint_of_another_recipe_is_not_gone_on_with(tmp_path: Path) -> None:
    interrupted_after(1, make_run(tmp_path))
    with pytest.raises(ValueError, match=r"checkpoint.ckpt is of another recipe: alpha is 0.0 there, 0.5 here"):
        train(make_run(tmp_path, alpha="0.5"))


def test_a_full_disk_names_the_file_and_the_run_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"could not write .*checkpoint\.ckpt: No space left"):
            train(run)
    assert not list(run.folder.glob(".checkpoint*")), "nothing half-written stays behind"
    assert train(run).test.n == 397


def test_divergence_is_recorded_not_raised(tmp_path: Path) -> None:
    record = train(make_run(tmp_path, "standard", learning_rate="1e30", epochs="1"))
    assert record.test.loss[0] != record.test.loss[0] or record.test.loss[0] > 1e6
    assert read_record(tmp_path / "records" / "standard-seed0.json").arm == "standard"


def test_the_kept_weights_give_the_recorded_test_result(tmp_path: Path) -> None:
    from torchcbl.lab.arms import find_arm
    from torchcbl.lab.data import load_data
    from torchcbl.lab.experiment import Experiment
    from torchcbl.lab.scores import Scores

    run = make_run(tmp_path)
    record = train(run)
    model = rebuild(run.folder).eval()
    scores = Scores()
    experiment = Experiment(run, load_data("digits", validation_size=100))
    with torch.no_grad():
        for x, target in experiment.test_dataloader():
            scores.add(find_arm(run.arm).outputs(model, x), target)
    assert scores.accuracy == record.test.accuracy
    assert scores.loss == pytest.approx(record.test.loss, rel=1e-5)


def test_a_checkpoint_holds_the_history(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    interrupted_after(2, run)
    history = DurableCheckpointIO().load_checkpoint(run.checkpoint)["history"]
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2]
    assert history["seconds"] > 0


def test_the_same_recipe_twice_gives_the_same_numbers(tmp_path: Path) -> None:
    first, second = (train(make_run(tmp_path / name, "cbl-gate", augment="true")) for name in ("a", "b"))
    assert numbers(first) == numbers(second)
    assert isinstance(Recipe(**first.recipe), Recipe)  # type: ignore[arg-type]
