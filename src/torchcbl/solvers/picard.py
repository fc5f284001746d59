"""Damped fixed-point iteration."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_fraction
from torchcbl.refinement import DIVERGED_ABOVE
from torchcbl.solvers.base import Memory, Solver


@dataclass(frozen=True)
class Picard(Solver):
    """Repeat G, keeping a part of the old iterate.

        s_{t+1} = damping s_t + (1 - damping) G(s_t)

    The loop of the paper itself when `damping` is 0, and its Eq. 11 otherwise. Converges at rate
    damping + (1 - damping) gamma where G is a gamma-contraction; one evaluation per step, nothing remembered.

    Args:
        damping: Weight of the OLD iterate in [0, 1).

    Raises:
        ValueError: `damping` is out of its range.

    Source:
        Picard 1890; damped: Krasnoselskii 1955, Mann 1953.

    Example:
        >>> Picard(damping=0.5).step((), torch.zeros(1, 2), torch.ones(1, 2), torch.cos)[0]
        tensor([[0.5000, 0.5000]])
    """

    damping: float = 0.0
    name = "picard"
    diverged_above = DIVERGED_ABOVE

    def __post_init__(self) -> None:
        check_fraction("Picard", "damping", self.damping)

    def step(self, memory: Memory, s: Tensor, value: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Memory]:
        """Return damping s + (1 - damping) G(s)."""
        del g
        return (value if self.damping == 0.0 else torch.lerp(value, s, self.damping)), memory
