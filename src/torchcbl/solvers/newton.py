"""Newton's method, with the Jacobian of each sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_count
from torchcbl.refinement import is_finite
from torchcbl.solvers.base import Memory, Solver, keep_finite
from torchcbl.solvers.jacobian import jacobian


@dataclass(frozen=True)
class Newton(Solver):
    """Solve the linearised problem at each step.

        s_{t+1} = s_t + (I - J_t)^{-1} (G(s_t) - s_t),   J_t = dG/ds at s_t

    Quadratic near the fixed point, whether G is a contraction or not; exact after one step where G is affine. A step
    costs N forward-mode products besides the value, in one batch where torch can, so it is for small spaces: the
    context of a loop with alpha = 0 and schedule="repropagate".

    Args:
        max_size: The largest N it is used for; the Jacobians hold B N^2 numbers.

    Raises:
        ValueError: s is larger than `max_size`.

    Source:
        Kelley 1995, Iterative Methods for Linear and Nonlinear Equations, chapter 5; forward-mode products as in
        Griewank and Walther 2008.

    Example:
        >>> Newton()
        Newton(max_size=256)
    """

    max_size: int = 256
    name = "newton"

    def __post_init__(self) -> None:
        check_count("Newton", "max_size", self.max_size)

    def check_size(self, size: int) -> None:
        """Refuse states that are larger than `max_size`."""
        if size > self.max_size:
            raise ValueError(
                f"solver='newton' needs the Jacobian of each sample, {size} x {size} numbers for a state of N = {size} "
                f"(at most {self.max_size}): use 'anderson' or 'broyden', a loop that carries the context alone "
                "(schedule='repropagate', alpha=0), or Newton(max_size=...)."
            )

    def extra_evaluations(self, size: int) -> int:
        """One product for each column of the Jacobian."""
        return size

    def step(self, memory: Memory, s: Tensor, value: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Memory]:
        """Return the solution of the problem linearised at s."""
        eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        system = eye - jacobian(g, s)
        residual = (value - s)[:, :, None]
        with torch.no_grad():
            solvable = is_finite(torch.linalg.solve_ex(system, residual)[0][:, :, 0])
        system = torch.where(solvable[:, None, None], system, eye)  # else its backward pass is 0 * inf, also for others
        change = torch.linalg.solve_ex(system, residual)[0][:, :, 0]
        return keep_finite(s + change, value), memory
