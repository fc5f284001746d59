"""What the finished runs of a sweep scored on validation data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

from torchcbl.lab.records import TrialRecord
from torchcbl.lab.statistics import summarise
from torchcbl.lab.sweep.grid import Setting
from torchcbl.lab.sweep.plan import Sweep

_DIGITS = 9  # of a mean: sums of the same scores in another order are a tie


@dataclass(frozen=True)
class Candidate:
    """One setting of one arm, and its runs.

    Args:
        arm: The arm.
        setting: What was tried.
        records: Of the finished runs, by seed; at least one.
        by: Score to judge by, "accuracy" or "loss".
    """

    arm: str
    setting: Setting
    records: tuple[TrialRecord, ...]
    by: str = "accuracy"

    @cached_property
    def scores(self) -> Mapping[int, float]:
        """By seed, of the last answer y_T after the last epoch: accuracy in per cent, or mean cross entropy."""
        return {record.seed: score(record, self.by) for record in self.records}

    @property
    def n(self) -> int:
        """Number of runs."""
        return len(self.records)

    @cached_property
    def mean(self) -> float:
        """Mean score over the seeds."""
        return round(summarise(list(self.scores.values())).mean, _DIGITS)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over the seeds; None for one run."""
        return summarise(list(self.scores.values())).std

    @property
    def standard_error(self) -> float | None:
        """Of the mean: std / sqrt(n); None for one run."""
        return None if self.std is None else self.std / math.sqrt(self.n)

    @property
    def worth(self) -> float:
        """The mean, so turned that more is better; a score that is not finite is worth nothing."""
        if not math.isfinite(self.mean):
            return -math.inf
        return self.mean if self.by == "accuracy" else -self.mean

    @property
    def cost(self) -> tuple[float, float]:
        """FLOPs per sample: of the whole answer, and of a step of training."""
        flops = self.records[0].flops
        return flops["inference"], flops["training"]

    @property
    def seconds(self) -> float:
        """Mean wall-clock time of training."""
        return fmean(record.seconds["training"] for record in self.records)


@dataclass(frozen=True)
class Results:
    """What a sweep has found so far.

    Args:
        sweep: What was asked for.
        seeds: Those that are judged by.
        candidates: Settings with a finished run of these seeds, in the sweep's order.
        references: The plain network, under each setting that concerns it.
    """

    sweep: Sweep
    seeds: tuple[int, ...]
    candidates: tuple[Candidate, ...]
    references: tuple[Candidate, ...]

    @property
    def complete(self) -> tuple[Candidate, ...]:
        """Settings whose runs have all finished: the only ones to choose among."""
        return tuple(one for one in self.candidates if one.n == len(self.seeds))

    @property
    def incomplete(self) -> tuple[tuple[Setting, int], ...]:
        """Settings some of whose runs failed or have not been done, and how many of them are there."""
        done = {one.setting: one.n for one in self.candidates}
        counts = [(setting, done.get(setting, 0)) for setting in self.sweep.possible]
        return tuple((setting, count) for setting, count in counts if count < len(self.seeds))

    def reference(self, candidate: Candidate) -> Candidate | None:
        """Find the plain network under what of a setting concerns it; None where no run has finished."""
        wanted = self.sweep.reference(candidate.setting)
        return next((one for one in self.references if one.setting == wanted), None)


def score(record: TrialRecord, by: str) -> float:
    """Read the validation score of the last answer after the last epoch: accuracy (%) or mean cross entropy."""
    last = record.epochs[-1]
    return 100 * last.validation_accuracy[-1] if by == "accuracy" else last.validation_loss[-1]


def read_results(sweep: Sweep, out: Path) -> Results:
    """Read what the runs of a sweep scored.

    One that was stopped before its end is judged by its first seeds alone: those that every setting has of which the
    first seed is finished.

    Args:
        sweep: The sweep.
        out: Its folder.

    Raises:
        ValueError: A record is damaged, or of another run.
    """
    found = {
        (arm, setting): _finished(sweep, out, arm, setting)
        for arm, settings in ((sweep.arm, sweep.possible), (sweep.plain, sweep.references))
        for setting in settings
    }
    seeds = sweep.all_seeds
    if not sweep.ended:
        passes = [_leading(records, seeds) for (arm, _), records in found.items() if arm == sweep.arm]
        seeds = seeds[: min((length for length in passes if length), default=len(seeds))]
    kept = {key: tuple(record for record in records if record.seed in seeds) for key, records in found.items()}
    candidates = [Candidate(arm, setting, records, sweep.by) for (arm, setting), records in kept.items() if records]
    return Results(
        sweep,
        seeds,
        tuple(one for one in candidates if one.arm == sweep.arm),
        tuple(one for one in candidates if one.arm == sweep.plain),
    )


def _finished(sweep: Sweep, out: Path, arm: str, setting: Setting) -> list[TrialRecord]:
    records = [sweep.trial(out, arm, setting, seed).read() for seed in sweep.all_seeds]
    return [record for record in records if record is not None]


def _leading(records: list[TrialRecord], seeds: tuple[int, ...]) -> int:
    """Count the seeds that are finished without a gap, from the first."""
    done = {record.seed for record in records}
    return next((index for index, seed in enumerate(seeds) if seed not in done), len(seeds))
