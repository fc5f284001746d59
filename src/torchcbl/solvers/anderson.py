"""Anderson acceleration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_above_zero, check_count, check_fraction
from torchcbl.solvers.base import Memory, Solver, keep_finite


@dataclass(frozen=True)
class Anderson(Solver):
    """Combine the last values of G so that their residuals cancel (type II).

        r_t = G(s_t) - s_t,   c = argmin ||r_t - dR c||^2,   s_{t+1} = (G(s_t) - dG c) - damping (r_t - dR c)

    with dR and dG the last `memory` differences of residuals and values. On an affine map it equals GMRES, so it is
    there after N + 1 evaluations if `memory` is at least N. The default choice where s is large or G costs much.

    Args:
        memory: How many differences are kept for each sample, at least 1: 2 `memory` N numbers.
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

    memory: int = 5
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
            return torch.lerp(value, s, self.damping), (value, residual, nothing, nothing)
        assert isinstance(memory, tuple)
        old_value, old_residual, values, residuals = memory
        kept = min(self.memory, s.shape[1])  # more than N differences are dependent
        values = torch.cat([values, (value - old_value)[:, None]], dim=1)[:, -kept:]
        residuals = torch.cat([residuals, (residual - old_residual)[:, None]], dim=1)[:, -kept:]
        weights = self._least_squares(residuals, residual)
        new = value - (weights @ values)[:, 0]
        if self.damping:
            new = new - self.damping * (residual - (weights @ residuals)[:, 0])
        return keep_finite(new, value), (value, residual, values, residuals)

    def _least_squares(self, columns: Tensor, target: Tensor) -> Tensor:
        """Return c (B, 1, m) that minimises ||target - sum_i c_i columns_i||, by scaled normal equations."""
        scale = columns.norm(dim=2, keepdim=True)
        scaled = columns / scale.clamp(min=torch.finfo(columns.dtype).tiny)
        gram = scaled @ scaled.mT
        ridge = 10 * torch.finfo(columns.dtype).eps if self.ridge is None else self.ridge
        gram = gram + ridge * torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
        weights = torch.linalg.solve_ex(gram, scaled @ target[:, :, None])[0]
        combined: Tensor = (weights / scale.clamp(min=torch.finfo(columns.dtype).tiny)).mT
        return combined
