"""Many runs in few words."""

from __future__ import annotations

from collections.abc import Iterable


def listed(names: Iterable[str]) -> str:
    """List runs arm by arm, three or more seeds in a row as a range.

    Example:
        >>> listed(["cbl-seed1", "cbl-seed2", "cbl-seed3", "cbl-seed9", "untied-seed0", "untied-seed1"])
        'cbl-seed1 to -seed3, cbl-seed9, untied-seed0, untied-seed1'
    """
    ranges: list[tuple[str, int, int]] = []
    for name in names:
        arm, _, number = name.rpartition("-seed")
        seed = int(number)
        if ranges and ranges[-1][::2] == (arm, seed - 1):
            ranges[-1] = (arm, ranges[-1][1], seed)
        else:
            ranges.append((arm, seed, seed))
    return ", ".join(words for arm, first, last in ranges for words in _words(arm, first, last))


def count(number: int, noun: str) -> str:
    """Write a number of things.

    Example:
        >>> count(1, "seed"), count(3, "seed")
        ('1 seed', '3 seeds')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _words(arm: str, first: int, last: int) -> list[str]:
    if last - first >= 2:
        return [f"{arm}-seed{first} to -seed{last}"]
    return [f"{arm}-seed{seed}" for seed in range(first, last + 1)]
