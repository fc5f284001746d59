"""What the runs of one arm scored, and an interval of their mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Summary:
    """What a set of runs scored.

    Args:
        n: Number of runs.
        mean: Their mean.
        std: Sample standard deviation (divisor n - 1); None for one run.
        minimum: The lowest.
        maximum: The highest.
    """

    n: int
    mean: float
    std: float | None
    minimum: float
    maximum: float


def summarise(values: Sequence[float]) -> Summary:
    """Summarise the scores of one arm.

    A NaN among the values makes every number NaN: a run that failed is not quietly left out.

    Args:
        values: One score per run, at least one.

    Raises:
        ValueError: There are no values.

    Example:
        >>> summarise([78.0, 79.0, 80.0])
        Summary(n=3, mean=79.0, std=1.0, minimum=78.0, maximum=80.0)
    """
    if not values:
        raise ValueError("summarise needs at least one score, got none: finish a run of the arm first")
    scores = np.asarray(values, dtype=float)
    std = float(scores.std(ddof=1)) if scores.size > 1 else None
    return Summary(scores.size, float(scores.mean()), std, float(scores.min()), float(scores.max()))


@dataclass(frozen=True)
class Interval:
    """A range built to hold the true mean difference in 95 of 100 studies like this one.

    Args:
        low: Lower end, in points.
        high: Upper end, in points.
    """

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return " to ".join(f"{round(end, 2) + 0.0:.2f}" for end in (self.low, self.high))  # never -0.00


def t_interval(values: Sequence[float]) -> Interval | None:
    """Return Student's 95% interval of the mean; None without spread or with one value.

    Args:
        values: One number per run, at least one.

    Example:
        >>> print(t_interval([1.0, 2.0, 3.0]))
        -0.48 to 4.48
    """
    numbers = np.asarray(values, dtype=float)
    if numbers.size < 2 or np.ptp(numbers) == 0:
        return None
    mean, std = float(numbers.mean()), float(numbers.std(ddof=1))
    margin = float(stats.t.ppf(0.975, numbers.size - 1)) * std / math.sqrt(numbers.size)
    return Interval(mean - margin, mean + margin)
