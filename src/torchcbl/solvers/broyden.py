"""Broyden's method with a limited memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_count
from torchcbl.solvers.base import Memory, Solver, keep_finite
from torchcbl.solvers.history import append


@dataclass(frozen=True)
class Broyden(Solver):
    """Learn the inverse Jacobian of the residual from the steps that were taken ("good" Broyden).

        r(s) = G(s) - s,   s_{t+1} = s_t - H_t r_t,   H_0 = -I,
        H_{t+1} = H_t + (ds - H_t dr) ds^T H_t / (ds^T H_t dr)

    Superlinear near the fixed point, also where G is no contraction; it needs nothing but values of G. H is kept as
    -I and `memory` rank-one terms; when they are used up, it starts again from -I.

    Args:
        memory: How many rank-one terms are kept for each sample, at least 1: 2 `memory` N numbers.

    Raises:
        ValueError: `memory` is below 1.

    Source:
        Broyden 1965; limited memory: Kelley 1995, Iterative Methods for Linear and Nonlinear Equations, chapter 7.

    Example:
        >>> Broyden()
        Broyden(memory=20)
    """

    memory: int = 20
    name = "broyden"

    def __post_init__(self) -> None:
        check_count("Broyden", "memory", self.memory)

    def step(self, memory: Memory, s: Tensor, value: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Memory]:
        """Return s - H r after H has learnt from the last step."""
        del g
        residual = value - s
        if not memory:
            nothing = s.new_zeros(len(s), 0, s.shape[1])
            return value, (s, residual, -residual, nothing, nothing)
        assert isinstance(memory, tuple)
        old_s, old_residual, h_old, left, right = memory
        moved, change = s - old_s, residual - old_residual
        if left.shape[1] == self.memory:  # each term is relative to those before it: dropping one alone spoils the rest
            left, right, h_old = left[:, :0], right[:, :0], -old_residual
        h_residual = _apply(left, right, residual)
        h_change = h_residual - h_old
        moved_h = _apply(right, left, moved)  # ds^T H
        denominator = (moved_h * change).sum(dim=1, keepdim=True)
        size = _norm(moved_h) * _norm(change)
        usable = denominator.abs() > torch.finfo(s.dtype).eps * size
        column = torch.where(usable, (moved - h_change) / torch.where(usable, denominator, 1.0), 0.0)
        left, right = append(left, column, self.memory), append(right, moved_h, self.memory)
        h_residual = h_residual + column * (moved_h * residual).sum(dim=1, keepdim=True)
        return keep_finite(s - h_residual, value), (s, residual, h_residual, left, right)


def _apply(left: Tensor, right: Tensor, x: Tensor) -> Tensor:
    """Apply -I + sum_i left_i right_i^T to x (B, N)."""
    return ((x[:, None] @ right.mT) @ left)[:, 0] - x


def _norm(x: Tensor) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return size
