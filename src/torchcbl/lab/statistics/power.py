"""How many paired seeds a study needs, and what it could have seen with those it has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

POWER = 0.8
ALPHA = 0.05
WANTED = 0.5
"""The difference that a study should be able to see, in points."""
CONFIDENCE = 0.8


@dataclass(frozen=True)
class Plan:
    """What n paired seeds could see, and how many would see `difference`.

    Args:
        n: Number of paired seeds that there are.
        sd: Sample deviation of their differences, in points.
        difference: The true difference that is to be seen, in points.
        seeds: Paired seeds needed if the true deviation is `sd`.
        seeds_cautious: The same with the upper 80% confidence limit of the deviation, which few seeds know badly.
        smallest: The least true difference that n seeds would have seen, in points, if the true deviation is `sd`.
    """

    n: int
    sd: float
    difference: float
    seeds: int
    seeds_cautious: int
    smallest: float


def plan(differences: Sequence[float], difference: float = WANTED, alpha: float = ALPHA) -> Plan | None:
    """Plan the next study by the spread of this one: seeds for 80% power in a two-sided paired t-test.

    Args:
        differences: Treatment minus baseline per seed, in points.
        difference: The true difference that is to be seen, in points, > 0.
        alpha: Level of the test; 0.05 / k is the worst that Holm's correction for k comparisons asks for.

    Returns:
        None below two differences, and where all are equal.

    Example:
        >>> found = plan([0.1, -0.2, 0.3, 0.4, 0.9])
        >>> round(found.sd, 2), found.seeds, found.seeds_cautious, round(found.smallest, 2)
        (0.41, 8, 15, 0.68)
    """
    values = np.asarray(differences, dtype=float)
    if values.size < 2 or np.ptp(values) == 0:
        return None
    n, sd = values.size, float(values.std(ddof=1))
    return Plan(
        n=n,
        sd=sd,
        difference=difference,
        seeds=seeds_needed(sd, difference, alpha=alpha),
        seeds_cautious=seeds_needed(sd_limit(sd, n), difference, alpha=alpha),
        smallest=smallest_difference(n, sd, alpha=alpha),
    )


def power(n: int, sd: float, difference: float = WANTED, alpha: float = ALPHA) -> float:
    """Compute how often a two-sided paired t-test with n seeds shows a true difference.

    The statistic follows the noncentral t distribution with n - 1 degrees of freedom and noncentrality
    sqrt(n) difference / sd, where the differences are normal.

    Args:
        n: Number of paired seeds, >= 2.
        sd: True deviation of the differences, in points, > 0.
        difference: True mean difference, in points, >= 0.
        alpha: Level of the test, in (0, 1).

    Returns:
        A probability in [alpha, 1].

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> round(power(5, sd=0.3), 3)
        0.793
    """
    _check(n, sd, difference, alpha)
    shift = math.sqrt(n) * difference / sd
    critical = float(stats.t.isf(alpha / 2, n - 1))
    # scipy's far tail is NaN for large shifts, where it is zero to all digits
    far = np.nan_to_num(stats.nct.cdf(-critical, n - 1, shift))
    return min(1.0, float(stats.nct.sf(critical, n - 1, shift) + far))


def seeds_needed(sd: float, difference: float = WANTED, wanted: float = POWER, alpha: float = ALPHA) -> int:
    """Find the least number of paired seeds that shows a true difference with the wanted power.

    Args:
        sd: True deviation of the differences, in points, > 0. One that was estimated from few seeds may be far too
            small: take `sd_limit` of it to be on the safe side.
        difference: True mean difference, in points, > 0.
        wanted: Power, in (0, 1).
        alpha: Level of the two-sided test, in (0, 1).

    Returns:
        A number of seeds, >= 2.

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> seeds_needed(sd=0.3), seeds_needed(sd=0.6)
        (6, 14)
    """
    if not 0 < wanted < 1:
        raise ValueError(f"wanted must be in (0, 1), got {wanted}: the power, the chance to see the difference.")
    if not difference > 0:
        raise ValueError(f"difference must be > 0 points, got {difference}: no number of seeds shows that.")
    high = 2
    while power(high, sd, difference, alpha) < wanted:
        high *= 2
    low = max(1, high // 2)  # too few, or no test at all
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, sd, difference, alpha) >= wanted else (middle, high)
    return high


def smallest_difference(n: int, sd: float, wanted: float = POWER, alpha: float = ALPHA) -> float:
    """Find the least true difference that n paired seeds show with the wanted power, in points.

    Args:
        n: Number of paired seeds, >= 2.
        sd: True deviation of the differences, in points, > 0.
        wanted: Power, in (alpha, 1).
        alpha: Level of the two-sided test, in (0, 1).

    Raises:
        ValueError: An argument is out of range.

    Example:
        >>> round(smallest_difference(5, sd=0.3), 3)
        0.505
    """
    if not alpha < wanted < 1:
        raise ValueError(
            f"wanted must be in (alpha, 1) = ({alpha}, 1), got {wanted}: below alpha any difference will do."
        )
    high = sd
    while power(n, sd, high, alpha) < wanted:
        high *= 2
    return float(optimize.brentq(lambda difference: power(n, sd, difference, alpha) - wanted, 0.0, high))


def sd_limit(sd: float, n: int, confidence: float = CONFIDENCE) -> float:
    """Compute the upper confidence limit of a deviation that was estimated from n normal values.

        sd sqrt((n - 1) / q),  q the (1 - confidence) quantile of chi-squared with n - 1 degrees of freedom

    A study planned with it has at least the wanted power in that share of cases (Browne 1995, Statistics in
    Medicine 14).

    Args:
        sd: Sample deviation (divisor n - 1).
        n: Number of values, >= 2.
        confidence: One-sided, in (0, 1).

    Raises:
        ValueError: There are fewer than two values.

    Example:
        >>> [round(sd_limit(1.0, n), 2) for n in (2, 3, 5, 10)]
        [3.95, 2.12, 1.56, 1.29]
    """
    if n < 2:
        raise ValueError(f"the deviation of {n} values is not known: sd_limit needs n >= 2.")
    return sd * math.sqrt((n - 1) / float(stats.chi2.ppf(1 - confidence, n - 1)))


def _check(n: int, sd: float, difference: float, alpha: float) -> None:
    if n < 2:
        raise ValueError(f"n must be >= 2 paired seeds, got {n}: one pair has no spread and no test.")
    if not 0 < sd < math.inf:
        raise ValueError(f"sd must be > 0 and finite, got {sd}: without spread any difference is seen at once.")
    if not difference >= 0:
        raise ValueError(f"difference must be >= 0 points, got {difference}: the test is two-sided, give its size.")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}.")
