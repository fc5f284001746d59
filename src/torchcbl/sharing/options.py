"""Solvers, gradient rules and stopping rules as plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from numbers import Integral, Real
from typing import TypeVar

from torchcbl.adapters import CUSTOM
from torchcbl.gradients import GRADIENTS, Gradient
from torchcbl.halting import Agreement, Both, Confidence, Either, Halting, Never, Tolerance
from torchcbl.solvers import SOLVERS, Solver

_HALTING: tuple[type, ...] = (Never, Tolerance, Confidence, Agreement, Either, Both)
_RULES: tuple[type, ...] = (*SOLVERS.values(), *GRADIENTS.values(), *_HALTING)
KINDS: Mapping[str, type] = {kind.__name__: kind for kind in _RULES}
T = TypeVar("T", Solver, Gradient, Halting)


def describe_option(option: object) -> object:
    """Say in plain data what an option is: its kind and its fields; `CUSTOM` where its code is the caller's own."""
    if option is None or isinstance(option, (str, int, float)):
        return option
    if isinstance(option, Real):  # numpy's
        return int(option) if isinstance(option, Integral) else float(option)
    if KINDS.get(type(option).__name__) is not type(option):
        return CUSTOM
    described = {field.name: describe_option(getattr(option, field.name)) for field in fields(option)}  # type: ignore[arg-type]
    return CUSTOM if CUSTOM in described.values() else {"kind": type(option).__name__, **described}


def restore_option(described: object) -> object:
    """Make the option again that `describe_option` described.

    Raises:
        ValueError: Its kind or a field is unknown, or a value out of its range.
        TypeError: It is of another form.
    """
    if not isinstance(described, Mapping):
        return described
    kind = described.get("kind")
    if kind not in KINDS:
        raise ValueError(f"there is no solver, gradient rule or stopping rule {kind!r}")
    known = {field.name for field in fields(KINDS[str(kind)])}
    given = {name: restore_option(value) for name, value in described.items() if name != "kind"}
    if set(given) != known:
        raise ValueError(f"{kind} has the fields {sorted(known)}, got {sorted(given)}")
    return KINDS[str(kind)](**given)


def choose_option(name: str, described: object, given: T | str | None) -> T | str | None:
    """Return what a caller of `load` gave, else what was saved.

    Raises:
        ValueError: What was saved has code of its own, and the caller gave none.
    """
    if given is not None:
        return given
    if described == CUSTOM:
        raise ValueError(
            f"the loop was saved with a {name} of the caller's own, whose code is not in the file: pass one as "
            f"load(..., {name}=...)."
        )
    return restore_option(described)  # type: ignore[return-value]
