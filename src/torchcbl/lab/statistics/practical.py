"""Worse, practically equal or better: a Bayesian comparison with a region of practical equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ROPE = 0.5
"""Half the width of the region of practical equivalence, in points."""


@dataclass(frozen=True)
class Practical:
    """How probable each of three answers is, given the differences; they sum to 1.

    Args:
        worse: That the true mean difference lies below -rope.
        equal: That it lies within -rope..rope: practically equal.
        better: That it lies above rope.
        rope: Half the width of the region of practical equivalence, in points.
    """

    worse: float
    equal: float
    better: float
    rope: float = ROPE


def practical(differences: Sequence[float], rope: float = ROPE, correlation: float = 0.0) -> Practical | None:
    """Ask whether the true mean difference is below, within or above what would matter.

    The Bayesian t-test of Benavoli, Corani, Demsar and Zaffalon (2017, JMLR 18:77): with a flat prior on mean and log
    deviation of normal differences, the mean's posterior is Student's t with n - 1 degrees of freedom about mean(d),

        scale^2 = (1 / n + rho / (1 - rho)) var(d)

    Take rho = 0, the default, for seeds. Paired runs of different seeds draw their weights and batches anew and
    independently; what they share, training and test images, is held fixed, so that the answer is about new seeds on
    these very images. rho is there for cross-validation, whose runs are correlated because they train on overlapping
    folds: with k folds, rho = 1 / k (Nadeau and Bengio 2003). To have new test images in the question as well, see
    `two_level_interval`.

    Args:
        differences: Treatment minus baseline per run, in points.
        rope: Half the width of the region of practical equivalence, in points, >= 0. Fix it before looking.
        correlation: rho between the runs, in [0, 1).

    Returns:
        The three probabilities; None below two differences, and where all are equal: there is no spread to go by.

    Raises:
        ValueError: `rope` or `correlation` is out of range.

    Example:
        >>> found = practical([0.1, -0.2, 0.3, 0.1, 0.0])
        >>> round(found.worse, 3), round(found.equal, 3), round(found.better, 3)
        (0.001, 0.996, 0.003)
    """
    if not rope >= 0:
        raise ValueError(f"rope must be >= 0 points, got {rope}: half the width of what counts as practically equal.")
    if not 0 <= correlation < 1:
        raise ValueError(f"correlation must be in [0, 1), got {correlation}: 0 for seeds, 1 / k for k folds.")
    values = np.asarray(differences, dtype=float)
    if values.size < 2 or np.ptp(values) == 0:
        return None
    scale = math.sqrt((1 / values.size + correlation / (1 - correlation)) * float(values.var(ddof=1)))
    posterior = stats.t(values.size - 1, float(values.mean()), scale)
    worse, better = float(posterior.cdf(-rope)), float(posterior.sf(rope))
    return Practical(worse, max(0.0, 1 - worse - better), better, rope)
