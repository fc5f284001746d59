"""Phantom gradients: a few damped steps at the answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchcbl.checks import check_count, check_fraction
from torchcbl.gradients.base import Gradient, Problem, attach, without_gradients
from torchcbl.solvers.iteration import Trace


@dataclass(frozen=True)
class Phantom(Gradient):
    """Differentiate through k damped steps taken at the answer of the solver.

        s <- damping s + (1 - damping) G(s),   k times from s_T without its gradient

    Its adjoint is the sum of the first k terms of a damped Neumann series, (1 - damping) sum_{i<k} (damping I +
    (1 - damping) J^T)^i, in place of (I - J^T)^{-1}: cheap, and biased by rho^k with rho that damped map's rate
    (measured in docs/choosing.md). It damps what a Jacobian of norm near 1 would blow up.

    Args:
        steps: k, at least 1.
        damping: Weight of the OLD state in [0, 1); the source's lambda is 1 - damping.

    Raises:
        ValueError: An option is out of its range.

    Source:
        Geng et al. 2021, On Training Implicit Models, arXiv 2111.05177 (the unrolled form).

    Example:
        >>> Phantom(steps=3, damping=0.5)
        Phantom(steps=3, damping=0.5)
    """

    steps: int = 5
    damping: float = 0.5
    name = "phantom"
    needs_one_map = True

    def __post_init__(self) -> None:
        check_count("Phantom", "steps", self.steps)
        check_fraction("Phantom", "damping", self.damping)

    def differentiate(self, problem: Problem) -> Trace:
        """Iterate without gradients, then take k damped steps with them."""
        with without_gradients():
            trace = problem.iterate()
        s = trace.value.detach()
        for _ in range(self.steps):
            value = problem.g(s, problem.steps).value
            s = torch.lerp(value, s, self.damping) if self.damping else value
        trace.evaluations = trace.evaluations + self.steps
        return attach(trace, problem.g, s)
