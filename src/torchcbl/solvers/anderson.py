"""Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_above_zero, check_count, check_fraction
from torchcbl.solvers.base import Memory, Solver, keep_finite
from torchcbl.solvers.history import append


@dataclass(frozen=True)
class Anderson(Solver):
    """Combine the last values of G so that their residuals cancel (type II).

        r_t = G(s_t) - s_t,   c = argmin ||r_t - dR c||^2,   s_{t+1} = (G(s_t) - dG c) - damping (r_t - dR c)

    with dR and dG the last `memory` differences of residuals and values. On an affine map it equals GMRES, so it is
    there after N + 1 evaluations if `memory` is at least N. The default choice where s is large or G costs much.

    Args:
        memory: How many differences are kept for each sample, at least 1: 2 `memory` N numbers; never more than N of
            them. It is what saves evaluations (docs/choosing.md).
        damping: Share of the combined residual that is held back, in [0, 1); 0 goes all the way.
        ridge: Added to the diagonal of the least-squares problem, whose columns are scaled to length 1; None takes
            10 times the rounding unit of s.

    Raises:
        ValueError: An option is out of its range.

    Source:
        Anderson 1965; in the form of Walker and Ni 2011, Anderson Acceleration for Fixed-Point Iterations.

    Example:
        >>> Anderson(memory=3)
        Anderson(memory=3, damping=0.0, ridge=None)
    """

    memory: int = 10
    damping: float = 0.0
    ridge: float | None = None
    name = "anderson"

    def __post_init__(self) -> None:
        check_count("Anderson", "memory", self.memory)
        check_fraction("Anderson", "damping", self.damping)
        if self.ridge is not None:
            check_above_zero("Anderson", "ridge", self.ridge)

    def step(self, memory: Memory, s: Tensor, value: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Memory]:
        """Return the combination of the last values whose residual is the least."""
        del g
        residual = value - s
        if not memory:
            nothing = s.new_zeros(len(s), 0, s.shape[1])
            return torch.lerp(value, s, self.damping), (value, residual, nothing, nothing, s.new_zeros(len(s), 0, 0))
        assert isinstance(memory, tuple)
        old_value, old_residual, values, residuals, gram = memory
        change = residual - old_residual
        length = torch.linalg.vector_norm(change, dim=1, keepdim=True).clamp(min=torch.finfo(s.dtype).tiny)
        column = change / length
        limit = min(self.memory, s.shape[1])  # more columns than that depend on each other
        residuals = append(residuals, column, limit)
        values = append(values, (value - old_value) / length, limit)
        gram = _bordered(gram, column[:, None] @ residuals.mT)
        weights = self._least_squares(gram, residual[:, None] @ residuals.mT)
        new = value - (weights @ values)[:, 0]
        if self.damping:
            new = new - self.damping * (residual - (weights @ residuals)[:, 0])
        return keep_finite(new, value), (value, residual, values, residuals, gram)

    def _least_squares(self, gram: Tensor, products: Tensor) -> Tensor:
        """Return c (B, 1, m) that minimises ||r - dR c||, from dR^T dR (B, m, m) and r^T dR (B, 1, m)."""
        ridge = 10 * torch.finfo(gram.dtype).eps if self.ridge is None else self.ridge
        system = gram + ridge * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        weights: Tensor = torch.linalg.solve_ex(system, products.mT)[0].mT
        return weights


def _bordered(gram: Tensor, row: Tensor) -> Tensor:
    """Return a Gram matrix (B, m, m) for columns of which the last is new, given its products (B, 1, m)."""
    kept = row.shape[2] - 1
    old = gram[:, gram.shape[1] - kept :, gram.shape[1] - kept :]
    return torch.cat([torch.cat([old, row[:, :, :-1]], dim=1), row.mT], dim=2)
