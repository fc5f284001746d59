"""A study: arms x seeds, several runs at a time, by whatever engine, none of them twice."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from torchcbl.files import write_atomically
from torchcbl.lab.engines.base import Engine, Failure, Plan
from torchcbl.lab.engines.local import LocalEngine
from torchcbl.lab.locks import hold_saying
from torchcbl.lab.progress import Display
from torchcbl.lab.ranks import Spread
from torchcbl.lab.recipe import ARM_NAMES, Recipe, differences, read_recipe
from torchcbl.lab.records import read_records
from torchcbl.lab.runs import Run, all_runs, begun
from torchcbl.lab.sources import SOURCES

if TYPE_CHECKING:
    from torchcbl.lab.data import Dataset

__all__ = ["Failure", "claim", "locked", "prepare", "run_study", "unfinished"]

R = TypeVar("R", bound=Run)


def run_study(
    recipe: Recipe,
    out: Path,
    display: Display,
    data: Path | None = None,
    jobs: int = 1,
    engine: Engine | None = None,
) -> list[Failure]:
    """Do all runs of a study that are not done yet.

    Args:
        recipe: What to do.
        out: The study's folder; runs that have a record there are not repeated, begun ones go on.
        display: Shows how far it has come.
        data: Folder of the data set; none uses `TORCHCBL_DATA` or the cache.
        jobs: Runs at a time on this machine, >= 1; each gets cores // jobs threads. The number of threads can change
            the last bits of a result, so a run goes on with the number that it began with.
        engine: What does the runs, in place of so many processes on this machine (`torchcbl.lab.engines.make_engine`).

    Returns:
        The runs that failed; the others are finished.

    Raises:
        ValueError: `out` holds another study, one on other data, a damaged record, one that was trained in another
            number of processes, or a recipe.toml or data.json of one's own; or `jobs` or a data file is wrong.
        OSError: `out` cannot be written, the data is not there, or another process is at work in `out`.
    """
    engine = engine or LocalEngine(Plan(jobs))
    with locked(out):
        claimed = claim(recipe, out)
        for record in read_records(out):
            engine.plan.spread.check(Spread.of(record.machine), f"record {record.name} in {out}")
        runs = all_runs(recipe, out, data)
        pending = unfinished(runs)
        if not pending and not SOURCES[recipe.data].own:  # a folder of one's own may be another than before
            _save(claimed, out)
            return []
        with display:
            display.begin(len(runs), len(runs) - len(pending))
            if pending:
                engine.start(len(runs))
            _keep_identity(out, prepare(recipe, data, display, engine.plan.spread))
            _save(claimed, out)
            return engine.work_off(pending, display) if pending else []


def unfinished(runs: Sequence[R]) -> list[R]:
    """Find the runs that have no record yet; of the others, what a kill left behind is removed."""
    pending = [run for run in runs if not run.record.exists()]
    for run in runs:
        if run not in pending:
            run.checkpoint.unlink(missing_ok=True)  # a kill between the record and this left it behind
    return pending


def claim(recipe: Recipe, out: Path) -> Recipe:
    """Check that `out` can be the folder of this study, and add the arms and seeds of earlier commands to its recipe.

    A study that has not come to the end of an epoch leaves the folder free, its arms and seeds forgotten.

    Raises:
        ValueError: `out` holds another study, the message names the keys that differ; or a recipe.toml of one's own.
    """
    if (out / "sweep.json").exists():
        raise ValueError(f"{out} holds a sweep, whose seeds and scores are not a study's: choose another --out.")
    path = out / "recipe.toml"
    if path.exists() and not begun(out):
        _check_own(path)
    known = read_recipe(path) if path.exists() and begun(out) else recipe
    for record in read_records(out):
        _compare(record.recipe, recipe, f"record {record.name} in {out}")
    _compare(known.as_dict(), recipe, str(out))
    arms = tuple(arm for arm in ARM_NAMES if arm in known.arms + recipe.arms)
    return dataclasses.replace(known, arms=arms, seeds=max(known.seeds, recipe.seeds))


def _check_own(path: Path) -> None:
    """Refuse to write over a recipe that no command has written, as one's own beside the studies that it is for."""
    try:
        own = read_recipe(path).as_toml() == path.read_text("utf-8")
    except (ValueError, TypeError, OSError):
        own = False
    if not own:
        raise ValueError(
            f"{path} was not written by this command, which would replace it: choose another --out, or move the file."
        )


def _save(recipe: Recipe, out: Path) -> None:
    write_atomically(out / "recipe.toml", recipe.as_toml())


def _keep_identity(out: Path, dataset: Dataset) -> None:
    from torchcbl.lab.data.identity import keep_identity

    keep_identity(out, dataset, fresh=not begun(out))


def _compare(found: Mapping[str, object], recipe: Recipe, where: str) -> None:
    differing = differences(found, recipe)
    if differing:
        raise ValueError(f"{where} belongs to another study: {'; '.join(differing)}. Choose another --out.")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other studies out of the folder `out`; the lock dies with this process.

    Raises:
        BlockingIOError: Another process is at work there.
        OSError: It cannot be made or written to.
    """
    busy = f"another torchcbl is at work in {out}: wait until it has ended, or choose another --out."
    with hold_saying(out / ".lock", busy, f"could not write to the folder {out}", "choose another --out"):
        yield


def prepare(recipe: Recipe, data: Path | None, display: Display, spread: Spread) -> Dataset:
    """Load the data once, so that a fault shows once, and what is downloaded or decoded lies ready for the runs.

    Raises:
        ValueError: A file is damaged, `validation_size` does not fit, or an arm cannot take a batch, or
            would be another's with so few steps.
        OSError: The data is not there.
    """
    from torchcbl.lab.arms import find_arm
    from torchcbl.lab.data import load_dataset
    from torchcbl.lab.data.dataset import PARTS

    for name in recipe.arms:
        find_arm(name).check_steps(recipe)
    dataset = load_dataset(recipe, data, progress=display.preparing)
    arms = [arm for arm in map(find_arm, recipe.arms) if arm.fewest > 1]
    for arm, part in itertools.product(arms, PARTS):
        last = (dataset.size(part) - 1) % recipe.batch_size + 1
        if last < arm.fewest * spread.size:
            each = f" in each of {spread.size} processes" if spread.size > 1 else ""
            raise ValueError(
                f"{arm.name} needs {arm.fewest} samples in a batch{each}, but the last batch of the "
                f"{dataset.size(part)} {part} samples has {last}: choose another batch_size than {recipe.batch_size}, "
                "or leave the arm out."
            )
    return dataset
