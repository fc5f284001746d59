"""Checks of numbers that options take."""

from __future__ import annotations

from numbers import Integral, Real


def check_fraction(owner: str, name: str, value: object) -> None:
    """Refuse what is no number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{owner}'s {name} must be a number in [0, 1), got {value!r}.")
    if not 0.0 <= float(value) < 1.0:
        raise ValueError(f"{owner}'s {name} must lie in [0, 1), got {value}.")


def check_above_zero(owner: str, name: str, value: object) -> None:
    """Refuse what is no positive number."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{owner}'s {name} must be a number above 0, got {value!r}.")
    if not 0.0 < float(value) < float("inf"):
        raise ValueError(f"{owner}'s {name} must be finite and above 0, got {value}.")


def check_count(owner: str, name: str, value: object) -> None:
    """Refuse what is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{owner}'s {name} must be a whole number, at least 1, got {value!r}.")
    if int(value) < 1:
        raise ValueError(f"{owner}'s {name} must be at least 1, got {value}.")
