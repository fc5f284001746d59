"""One run of a study, one arm with one seed, and where its files lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchcbl.lab.ranks import Rank
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import RECORDS, record_path, run_name


@dataclass(frozen=True)
class Run:
    """Name a run and find its files.

    Args:
        recipe: The study's recipe.
        arm: The arm to train.
        seed: The run's seed.
        out: The study's folder.
        data: Folder of the data set; none uses `TORCHCBL_DATA` or the cache.
    """

    recipe: Recipe
    arm: str
    seed: int
    out: Path
    data: Path | None = None

    @property
    def name(self) -> str:
        """`<arm>-seed<seed>`."""
        return run_name(self.arm, self.seed)

    @property
    def folder(self) -> Path:
        """The run's own folder: logs, weights, and the checkpoint while it is unfinished."""
        return self.out / "runs" / self.name

    @property
    def checkpoint(self) -> Path:
        """Everything needed to go on from the last finished epoch."""
        return self.folder / "checkpoint.ckpt"

    @property
    def log(self) -> Path:
        """What the run's process printed."""
        return self.folder / "output.log"

    @property
    def model(self) -> Path:
        """Folder of the final weights."""
        return self.folder / "model"

    @property
    def record(self) -> Path:
        """The record, there once the run is finished."""
        return record_path(self.out, self.arm, self.seed)

    def train(self, report: Callable[[RunState], None], rank: Rank) -> None:
        """Train it to its end and leave its record; see `torchcbl.lab.training.train`."""
        from torchcbl.lab.training import train

        train(self, report, rank)


def all_runs(recipe: Recipe, out: Path, data: Path | None = None) -> list[Run]:
    """List the runs of a study, seed by seed, so that a study cut short holds whole pairs.

    Example:
        >>> from torchcbl.lab.recipe import load_recipe
        >>> [run.name for run in all_runs(load_recipe("demo", {"seeds": "1"}), Path("out"))]
        ['standard-seed0', 'cbl-seed0', 'cbl-gate-seed0']
    """
    return [Run(recipe, arm, seed, out, data) for seed in range(recipe.seeds) for arm in recipe.trained_arms]


def begun(out: Path, records: str = "records") -> bool:
    """Say whether a run in the folder `out` has come to the end of an epoch; `records` holds those of finished runs."""
    return any((out / records).glob(RECORDS)) or any(out.glob("runs/*/checkpoint.ckpt"))


@dataclass(frozen=True)
class RunState:
    """How far a run has come.

    Args:
        epoch: The epoch at work, or just finished, from 1.
        done: Share of the whole training, in [0, 1].
        samples_per_second: Over the last few seconds.
        train_loss: Mean over the epoch so far.
        validation_accuracy: After the last finished epoch, at the last step; none before the first.
        epoch_finished: Whether this is the end of an epoch.
    """

    epoch: int
    done: float
    samples_per_second: float
    train_loss: float
    validation_accuracy: float | None
    epoch_finished: bool
