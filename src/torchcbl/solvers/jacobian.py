"""Jacobians of a map over a batch, sample by sample."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]
_thread = threading.local()


def jacobian(g: Function, s: Tensor) -> Tensor:
    """Return dG/ds of each sample, (B, N, N) with [b, i, j] = dG_i/ds_j at s_b, by forward-mode products.

    All N products run as one batch (torch.vmap) where torch can, else one by one; where a part of G has no forward
    mode, row by row in reverse mode. G must keep its samples apart.

    Args:
        g: Maps s (B, N) to (B, N).
        s: Where, (B, N).

    Example:
        >>> jacobian(torch.sin, torch.zeros(1, 2))
        tensor([[[1., 0.],
                 [0., 1.]]])
    """
    basis = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    if not s.numel():
        return s.new_zeros(len(s), s.shape[1], s.shape[1])
    attempts: list[Callable[[Function, Tensor, Tensor], Tensor]] = [_columns_at_once, _columns, _rows]
    for attempt in attempts[:-1]:
        try:
            return attempt(g, s, basis)
        except (RuntimeError, NotImplementedError):  # what torch raises where it has no rule, of whatever kind
            continue
    return attempts[-1](g, s, basis)


def _columns_at_once(g: Function, s: Tensor, basis: Tensor) -> Tensor:
    columns = torch.func.vmap(lambda e: product(g, s, e.expand_as(s)), out_dims=2)(basis)
    assert isinstance(columns, Tensor)
    return columns


def _columns(g: Function, s: Tensor, basis: Tensor) -> Tensor:
    return torch.stack([product(g, s, e.expand_as(s)) for e in basis], dim=2)


def _rows(g: Function, s: Tensor, basis: Tensor) -> Tensor:
    if torch.is_inference_mode_enabled():
        raise RuntimeError(
            "a part of the map has no forward-mode derivative, and torch.inference_mode() has no other: use "
            "torch.no_grad() instead, or a solver that needs no Jacobian ('anderson', 'broyden')."
        )
    create = torch.is_grad_enabled()
    with torch.enable_grad(), linearising():
        at = s if s.requires_grad else s.detach().requires_grad_()
        value = g(at)
        if not value.requires_grad:
            return s.new_zeros(len(s), s.shape[1], s.shape[1])
        rows = [
            torch.autograd.grad(value, at, e.expand_as(s), retain_graph=True, create_graph=create, allow_unused=True)[0]
            for e in basis
        ]
    return torch.stack([torch.zeros_like(s) if row is None else row for row in rows], dim=1)


_FORWARD_MODE = threading.RLock()
"""torch keeps one forward-mode level for all threads: the first to leave it would wipe out what others compute."""


def product(g: Function, s: Tensor, v: Tensor) -> Tensor:
    """Return J v, (B, N), by forward mode; one thread at a time."""
    with _FORWARD_MODE, linearising():
        result = torch.func.jvp(g, (s,), (v,))[1]
    assert isinstance(result, Tensor)
    return result


@contextmanager
def linearising() -> Iterator[None]:
    """Differentiate maps in this thread as they are: what is cut off in training alone, as by `Context(detach=True)`,
    belongs to the derivative of what a step computes.
    """
    outer, _thread.linearising = getattr(_thread, "linearising", False), True
    try:
        yield
    finally:
        _thread.linearising = outer


def is_linearising() -> bool:
    """Say whether this runs within `linearising`; no compiled program does."""
    return not torch.compiler.is_compiling() and bool(getattr(_thread, "linearising", False))
