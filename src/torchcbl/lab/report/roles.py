"""What the arms are to one another: which are loops, which are told the labels, which network they stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchcbl.lab.arms import Arm

_RELEASED = "as-released"


def arm_of(name: str) -> Arm | None:
    """Look an arm up; None where this version knows none of that name, as in records of others."""
    from torchcbl.lab.arms import find_arm  # loads torch, which a page is otherwise built without

    try:
        return find_arm(name)
    except ValueError:
        return None


def is_oracle(name: str) -> bool:
    """Say whether an arm is told the labels: an upper bound, no competitor."""
    arm = arm_of(name)
    return arm is not None and arm.oracle


def is_loop(name: str) -> bool:
    """Say whether an arm is the method itself, in some form, and so no control of it.

    Example:
        >>> [is_loop(name) for name in ("cbl", "cbl-gate", "as-released-cbl", "standard", "no-context")]
        [True, True, True, False, False]
    """
    return "cbl" in name.split("-")


def same_network(name: str, other: str) -> bool:
    """Say whether two arms stand on the same backbone: the released one or the laboratory's own.

    Example:
        >>> same_network("cbl", "wider-params"), same_network("cbl", "as-released-standard")
        (True, False)
    """
    return name.startswith(_RELEASED) == other.startswith(_RELEASED)
