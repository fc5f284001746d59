"""Running a function eagerly inside torch.compile, or once while a program is compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Make a function run eagerly in a compiled program too, as a break of its graph."""

    @functools.cache
    def disabled() -> Callable[P, R]:
        found: Callable[P, R] = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
        return found

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        # importing torch._dynamo takes a second, and nobody who has not loaded it is compiling
        return disabled()(*args, **kwargs) if "torch._dynamo" in sys.modules else function(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run


def once_compiled(function: Callable[P, R]) -> Callable[P, R]:
    """Have a compiled program run a function once, while it is compiled, and take what it returned for a constant.

    As `torch.compiler.assume_constant_result` does, which imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
