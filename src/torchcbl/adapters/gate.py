"""A sigmoid gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcbl.adapters.base import Adapter
from torchcbl.backbone.site import Site


class Gate(Adapter):
    """Scale each channel by a sigmoid of the context.

        h' = s sigmoid(W z + b) * h

    The paper's "lightweight gating adapter". With s = 2 and W = b = 0 it starts as the identity; it can silence a
    channel and at most double it. With s = 1 it can only attenuate, and starts at h / 2. Cost: C (D + 1) parameters
    and one multiplication per element of h.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        scale: s, the largest factor; positive and finite.
        identity: Whether W and b start at zero, so that h' = h bit for bit when s = 2; else as nn.Linear starts.

    Raises:
        ValueError: `scale` is not positive and finite.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops, Eq. 4 and section 4.1; the channel gate is that of Hu et al.
        2018, Squeeze-and-Excitation Networks, arXiv 1709.01507.

    Example:
        >>> gate = Gate(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(gate(h, torch.randn(8, 5)), h)
        True
    """

    def __init__(self, site: Site, context_dim: int, scale: float = 2.0, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        if not 0 < scale < float("inf"):
            raise ValueError(
                f"Gate's scale must be positive, got {scale}: expected a finite number above 0, as 2 (the identity)."
            )
        self.scale = scale
        self.linear = nn.Linear(context_dim, site.channels)
        if identity:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D)."""
        return h * self.per_channel(self.scale * torch.sigmoid(self.linear(z)), h)
