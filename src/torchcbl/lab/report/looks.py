"""How an arm looks, in every figure of every study."""

from __future__ import annotations

from collections.abc import Sequence

from torchcbl.lab.recipe import ARM_NAMES
from torchcbl.lab.report.drawing import MARKERS, PALETTE
from torchcbl.lab.report.families import BASELINES
from torchcbl.lab.report.roles import is_loop

MANY = 6
"""More arms than this are too many for one set of axes."""
_ALONE = 2  # the baseline and the loop share their colours with no other known arm


def colour(arm: str) -> str:
    """Return the colour of an arm."""
    return PALETTE[place(arm)]


def marker(arm: str) -> str:
    """Return the marker of an arm; no two of the known arms share both colour and marker."""
    index = _index(arm)
    return MARKERS[(index + index // len(PALETTE)) % len(MARKERS)]


def place(arm: str) -> int:
    """Return where an arm stands in the palette."""
    index, size = _index(arm), len(PALETTE)
    return index if index < size else _ALONE + (index - size) % (size - _ALONE)


def featured(arms: Sequence[str]) -> tuple[str, ...]:
    """Choose the arms that a figure shows in colour where all would be too many: the baseline and the loops.

    Example:
        >>> featured(("standard", "cbl", "no-context"))
        ('standard', 'cbl', 'no-context')
        >>> featured(("standard", "cbl", "a", "b", "c", "d", "e"))
        ('standard', 'cbl')
    """
    if len(arms) <= MANY:
        return tuple(arms)
    return tuple(arm for arm in arms if arm in BASELINES or is_loop(arm))[:MANY]


def _index(arm: str) -> int:
    return ARM_NAMES.index(arm) if arm in ARM_NAMES else sum(arm.encode())
