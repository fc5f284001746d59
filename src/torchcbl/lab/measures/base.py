"""What a measure is: what it takes to make it of one run, what it leaves, and which data it does not fit."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from torchcbl.lab.arms import Arm, find_arm
from torchcbl.lab.data import Dataset
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.machine import describe_machine, versions
from torchcbl.lab.measures.store import About, Result, read_result, result_path
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import Record
from torchcbl.lab.runs import Run


class UnfitError(ValueError):
    """A measure does not fit the data; the message says why."""


@dataclass(frozen=True, eq=False)
class Ground:
    """What all runs of a study are measured on.

    Args:
        recipe: The study's.
        dataset: Its data.
        folder: Where the data are; None for `TORCHCBL_DATA` or the cache.
        samples: Of how many test samples a subset is taken; None for each measure's own number.
    """

    recipe: Recipe
    dataset: Dataset
    folder: Path | None = None
    samples: int | None = None
    made: dict[str, object] = field(default_factory=dict)
    """What measures have made for all runs together."""


class Subject:
    """One finished run, rebuilt.

    Args:
        run: The run.
        record: Its record.
    """

    def __init__(self, run: Run, record: Record) -> None:
        self.run, self.record = run, record
        self.arm: Arm = find_arm(run.arm)
        self._begun = time.monotonic()

    @cached_property
    def model(self) -> nn.Module:
        """The trained network in eval mode, as it was tested; its parameters take no gradients."""
        model = rebuild(self.run.folder).eval().requires_grad_(False)
        return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def outputs(self, x: Tensor, target: Tensor) -> Tensor:
        """Compute the logits of every step, (T + 1, B, K); only oracle arms look at the classes (B,)."""
        return torch.stack(tuple(self.arm.outputs(self.model, x, target)))

    @torch.no_grad()
    def answers(self, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Compute the logits (T + 1, N, K) of all batches in float32, and their labels (N,)."""
        logits, labels = [], []
        for x, target in batches:
            logits.append(self.outputs(x, target).float())
            labels.append(target)
        return torch.cat(logits, dim=1), torch.cat(labels)

    def about(self, kind: str, n: int, **settings: object) -> About:
        """Say what was measured, as of now."""
        return About(
            kind=kind,
            arm=self.run.arm,
            seed=self.run.seed,
            finished=self.record.finished,
            n=n,
            settings=settings,
            versions=versions(),
            machine=describe_machine(torch.get_num_threads(), "cpu"),
            seconds=time.monotonic() - self._begun,
        )


class Measure(ABC):
    """One kind of measure.

    Args:
        name: One of `KIND_NAMES`, and its folder's name.
        result: The dataclass that it leaves.
    """

    name: str
    result: type[Result]

    def unfit(self, recipe: Recipe) -> str | None:
        """Say why it does not fit what a study is about, as far as the recipe tells; None where it does."""
        return None

    @abstractmethod
    def measure(self, subject: Subject, ground: Ground) -> Result:
        """Measure one run."""

    @abstractmethod
    def headline(self, found: Result) -> str:
        """Say in a line what came out of one run."""

    def settings(self, ground: Ground) -> Mapping[str, object]:
        """Say on how much it measures, as its results' `about` says: results of one study must agree in it."""
        return {}

    def prepare(self, ground: Ground) -> None:  # noqa: B027 (most need nothing)
        """See that it fits the data, and that all is there that it needs beside them.

        Raises:
            UnfitError: It does not fit.
            FileNotFoundError: Something is not there.
        """

    def read(self, folder: Path, record: Record) -> Result | None:
        """Read what was measured of a run; None where it was not.

        Raises:
            ValueError: The file is damaged.
        """
        path = result_path(folder, self.name, record.name)
        return read_result(self.result, path) if path.is_file() else None
