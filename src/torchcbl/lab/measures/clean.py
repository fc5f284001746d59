"""The kind `clean`: the test part as it is; accuracy, calibration, cost, early exit and what the loop changed."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.measures.base import Ground, Measure, Subject
from torchcbl.lab.measures.calibration import Reliability, StepScores, brier, correct, reliability, score
from torchcbl.lab.measures.exits import Exit, exits
from torchcbl.lab.measures.store import About, Result, read_result, result_path
from torchcbl.lab.measures.timing import Timing, time_answers
from torchcbl.lab.recipe import DERIVED_ARMS
from torchcbl.lab.records import read_record, record_path, run_name
from torchcbl.lab.scores import named


@dataclass(frozen=True)
class Change:
    """A test sample that is right at one of step 0 and step T, and wrong at the other.

    Args:
        index: Its place in the test part.
        label: Its class.
        first: The answer y_0.
        last: The answer y_T.
    """

    index: int
    label: int
    first: int
    last: int

    @property
    def better(self) -> bool:
        """Whether the loop put it right."""
        return self.last == self.label


@dataclass(frozen=True)
class Changes:
    """The samples that the loop changed, as columns of one length: a file of thousands stays small.

    Args:
        index: Their places in the test part, ascending.
        label: Their classes.
        first: The answers y_0.
        last: The answers y_T.

    Raises:
        ValueError: The columns differ in length.

    Example:
        >>> changes = Changes(index=(3, 53), label=(0, 3), first=(8, 3), last=(0, 5))
        >>> [change.better for change in changes]
        [True, False]
    """

    index: tuple[int, ...]
    label: tuple[int, ...]
    first: tuple[int, ...]
    last: tuple[int, ...]

    def __post_init__(self) -> None:
        lengths = [len(column) for column in (self.index, self.label, self.first, self.last)]
        if len(set(lengths)) > 1:
            raise ValueError(f"index, label, first and last should be of one length, got {lengths}")

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[Change]:
        return map(Change, self.index, self.label, self.first, self.last)


@dataclass(frozen=True)
class Clean:
    """What a run answered on the test part.

    Args:
        about: Which run.
        scores: Accuracy, negative log-likelihood and calibration error per step tau = 0..T.
        brier: Brier score per step.
        bins: Reliability per step.
        right: Which samples are right, per step: booleans packed eight to a byte (`np.packbits`), in base64.
        flops_first: FLOPs per sample of step 0.
        flops_step: FLOPs per sample of each further step.
        exits: Early exit, rule by rule; none without a loop.
        timings: Seconds per sample.
        changes: What the loop changed from step 0 to step T, for better and for worse.

    Raises:
        ValueError: The steps, the bits and the accuracies do not fit together.
    """

    about: About
    scores: StepScores
    brier: tuple[float, ...]
    bins: tuple[Reliability, ...]
    right: tuple[str, ...]
    flops_first: float
    flops_step: float
    exits: tuple[Exit, ...]
    timings: tuple[Timing, ...]
    changes: Changes

    def __post_init__(self) -> None:
        depth = len(self.scores.accuracy)
        if not len(self.brier) == len(self.bins) == len(self.right) == depth:
            lengths = (len(self.brier), len(self.bins), len(self.right))
            raise ValueError(f"{depth} steps need as many brier, bins and right, got {lengths}")
        found = self.correct().sum(1)
        expected = np.rint(np.array(self.scores.accuracy) * self.about.n).astype(int)
        if (found != expected).any():
            raise ValueError(f"right holds {found.tolist()} right answers, the accuracies say {expected.tolist()}")

    def correct(self) -> NDArray[np.bool_]:
        """Say which samples are right at every step, (T + 1, N)."""
        n = self.about.n
        rows = [np.frombuffer(base64.b64decode(row, validate=True), np.uint8) for row in self.right]
        if {len(row) for row in rows} != {(n + 7) // 8}:
            raise ValueError(f"right should hold {(n + 7) // 8} bytes per step, got {[len(row) for row in rows]}")
        return np.unpackbits(np.stack(rows), axis=1, count=n).astype(np.bool_)


class CleanMeasure(Measure):
    """Measure a run on the whole test part as it is."""

    name = "clean"
    result = Clean

    def measure(self, subject: Subject, ground: Ground) -> Clean:
        """See `Measure.measure`."""
        size = ground.recipe.batch_size
        batches = ground.dataset.batches("test", size, memory_format=torch.channels_last)
        logits, labels = subject.answers(batches)
        flops = subject.record.flops
        few = next(iter(ground.dataset.batches("test", 128, memory_format=torch.channels_last)))
        return Clean(
            scores=score(logits, labels),
            brier=tuple(brier(logits, labels).tolist()),
            bins=tuple(reliability(step, labels) for step in logits),
            right=pack(correct(logits, labels)),
            flops_first=flops["first"],
            flops_step=flops["step"],
            exits=exits(logits, labels, flops["first"], flops["step"]),
            timings=time_answers(subject, *few),
            changes=changed(logits, labels),
            about=subject.about(self.name, len(labels), batch=size),
        )

    def headline(self, found: Result) -> str:
        """See `Measure.headline`."""
        assert isinstance(found, Clean)
        steps = ", ".join(f"{100 * value:.2f}" for value in found.scores.accuracy)
        return f"accuracy by step {steps}%, ECE {100 * found.scores.ece[-1]:.2f} points"


def pack(right: Tensor) -> tuple[str, ...]:
    """Pack booleans (T + 1, N) into a base64 text per step.

    Example:
        >>> pack(torch.tensor([[True, False, False]]))
        ('gA==',)
    """
    return tuple(base64.b64encode(row.tobytes()).decode() for row in np.packbits(right.numpy(), axis=1))


def changed(logits: Tensor, labels: Tensor) -> Changes:
    """Find what is right at step 0 and wrong at step T, or the other way round; logits are (T + 1, N, K)."""
    first, last = named(logits[0], labels), named(logits[-1], labels)
    places = ((first == labels) != (last == labels)).nonzero()[:, 0]
    return Changes(*(tuple(column.tolist()) for column in (places, labels[places], first[places], last[places])))


def correct_of(folder: Path, run: str) -> NDArray[np.bool_]:
    """See `torchcbl.lab.measures.read_correct`."""
    arm, _, seed = run.rpartition("-seed")
    source, step = DERIVED_ARMS.get(arm, (arm, None))
    name = run if step is None else run_name(source, int(seed))
    path = result_path(folder, CleanMeasure.name, name)
    found = read_result(Clean, path)
    record = record_path(folder, found.about.arm, found.about.seed)
    if record.is_file() and read_record(record).finished != found.about.finished:
        raise FileNotFoundError(f"{path} is of a run that was repeated since: run `torchcbl measure {folder}`.")
    right = found.correct()
    return right if step is None else right[step : step + 1]
