"""Checks of a loop's arguments."""

from __future__ import annotations

from numbers import Integral, Real

from torchcbl.context import Context


def check_context(context: object) -> Context:
    """Return the context, the default one for None."""
    if context is None:
        return Context()
    if not isinstance(context, Context):
        raise TypeError(
            f"context must be a torchcbl.Context, got {context!r}: write for example Context(dim=64, source='probs')."
        )
    return context


def check_steps(steps: object) -> int:
    """Return T if it is a whole number, at least 0."""
    if isinstance(steps, bool) or not isinstance(steps, Integral):
        raise TypeError(f"steps must be a whole number, got {steps!r}: pass the number of feedback steps T.")
    if int(steps) < 0:
        raise ValueError(f"steps must be at least 0, got {steps}: 0 is the backbone alone.")
    return int(steps)


def check_alpha(alpha: object) -> float:
    """Return alpha if it is a number in [0, 1]."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real):
        raise TypeError(f"alpha must be a number in [0, 1], got {alpha!r}.")
    if not 0.0 <= float(alpha) <= 1.0:
        raise ValueError(
            f"alpha must lie in [0, 1], got {alpha}: it weights the OLD state, h <- alpha h + (1 - alpha) psi(h, z)."
        )
    return float(alpha)
