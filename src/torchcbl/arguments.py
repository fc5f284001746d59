"""Checks of a loop's arguments."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Collection, Iterable
from numbers import Integral, Real

from torch import nn

from torchcbl.context import Context

CALL_OPTIONS = ("steps", "solver", "gradient", "halting", "raise_on")
"""What a call of `refine` may change."""


def check_keywords(backbone: nn.Module, keywords: Iterable[str], known: Collection[str]) -> None:
    """Refuse options of `refine` that would go to the backbone, which may swallow them (`**kwargs`) unread.

    Args:
        backbone: What is called with the keywords.
        keywords: The names that are to go to it.
        known: Those of the example, which are its own.

    Raises:
        TypeError: One is an option of `refine`, or looks like one misspelt, and the backbone does not name it.
    """
    for keyword in keywords:
        if keyword in known:
            continue
        meant = difflib.get_close_matches(keyword, CALL_OPTIONS, n=1, cutoff=0.75)
        if meant and keyword not in inspect.signature(backbone.forward).parameters:
            raise TypeError(
                f"{keyword!r} would go to the backbone, whose forward does not name it: did you mean "
                f"refine(..., {meant[0]}=...)? Options of a call ({', '.join(CALL_OPTIONS)}) are those of net.refine; "
                "net(...) hands on all that it is given."
            )


def check_loop(owner: str, net: object) -> None:
    """Refuse what is no loop.

    Raises:
        TypeError: It is none.
    """
    from torchcbl.loop import ContextLoop

    if not isinstance(getattr(net, "_orig_mod", net), ContextLoop):  # torch.compile's wrapper passes everything on
        raise TypeError(
            f"{owner} needs a ContextLoop, got {type(net).__name__}: build a loop around your network, or pass the "
            "loop within a wrapper (DDP's is its `.module`)."
        )


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
