"""Feature-wise affine modulation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcbl.adapters.base import Adapter
from torchcbl.backbone.site import Site


class Film(Adapter):
    """Scale and shift each channel by functions of the context.

        h' = (1 + gamma(z)) * h + beta(z),    [gamma, beta] = W z + b

    The usual choice: it can amplify, silence and bias a channel. Cost: 2 C (D + 1) parameters, and one multiply-add
    per element of h.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        identity: Whether W and b start at zero, so that h' = h bit for bit; else as nn.Linear starts.

    Source:
        Perez et al. 2018, FiLM: Visual Reasoning with a General Conditioning Layer, arXiv 1709.07871.

    Example:
        >>> film = Film(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(film(h, torch.randn(8, 5)), h)
        True
    """

    def __init__(self, site: Site, context_dim: int, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        self.linear = nn.Linear(context_dim, 2 * site.channels)
        if identity:
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D)."""
        gamma, beta = self.linear(z).chunk(2, dim=-1)
        shift, scale = self.per_channel(beta, h), self.per_channel(1 + gamma, h)
        if z.ndim > 2:  # addcmul would take the memory format of the shift, on which later roundings depend
            return h * scale + shift
        return torch.addcmul(shift, h, scale)
