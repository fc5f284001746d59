"""What the arms are to one another: which are loops, which are told the labels, which network they stand on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchcbl.lab.arms import Arm
    from torchcbl.lab.recipe import Recipe

TOLD = "it is told the labels: an upper bound, no competitor"
"""What is said of every oracle."""
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


def told(name: str) -> str:
    """Return the sentence that follows all that is said of an oracle; nothing for other arms.

    Example:
        >>> told("label-context"), told("cbl")
        (' It is told the labels: an upper bound, no competitor.', '')
    """
    return f" {TOLD.capitalize()}." if is_oracle(name) else ""


def trains_first(name: str, recipe: Recipe) -> bool:
    """Say whether an arm's y_0 has a share in its loss; of arms that this version does not know, that it has."""
    arm = arm_of(name)
    return arm is None or arm.trains_first(recipe)


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


def described_by(name: str, treatment: str) -> Arm | None:
    """Find the arm whose text says what a control and a loop have in common; None where this version has none.

    It is the control, but for the released loop that has its baseline's dropout, whose own text says so.

    Example:
        >>> described_by("as-released-standard", "as-released-cbl-dropout").name
        'as-released-cbl-dropout'
    """
    return arm_of(treatment if has_dropout(treatment) else name)


def has_dropout(name: str) -> bool:
    """Say whether an arm is of the released code and has its dropout."""
    return bool(getattr(arm_of(name), "dropout", False))
