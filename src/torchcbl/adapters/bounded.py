"""A linear layer whose spectral norm cannot exceed a limit."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MARGIN = 1e-5
"""For what float32 rounds; lower precision takes two of its rounding units."""


class BoundedLinear(nn.Linear):
    """Compute y = W' x + b with W' = W min(1, limit / ||W||_2).

    ||W||_2 is the largest singular value, computed and not estimated by power iteration, which would come out too low.
    The parameters are those of the layer it stands for, so optimisers and saved weights go on; gradients flow through
    the norm.

    Args:
        linear: The layer whose parameters it takes.
        limit: The largest norm, above 0; `inf` for none.
    """

    def __init__(self, linear: nn.Linear, limit: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.limit = limit
        self.training = linear.training

    def bounded_weight(self) -> Tensor:
        """Return W'."""
        if self.limit == float("inf"):
            return self.weight
        exact = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        norm = torch.linalg.matrix_norm(exact, ord=2)
        limit = self.limit * (1 - max(_MARGIN, 2 * torch.finfo(self.weight.dtype).eps))
        bounded: Tensor = self.weight * (limit / norm.clamp(min=limit)).to(self.weight.dtype)
        return bounded

    def forward(self, x: Tensor) -> Tensor:
        """Apply the bounded map."""
        return F.linear(x, self.bounded_weight(), self.bias)

    def extra_repr(self) -> str:
        """Add the limit."""
        return f"{super().extra_repr()}, limit={self.limit:.3g}"


def weight_of(linear: nn.Linear) -> Tensor:
    """Return the weight that a linear layer computes with."""
    return linear.bounded_weight() if isinstance(linear, BoundedLinear) else linear.weight
