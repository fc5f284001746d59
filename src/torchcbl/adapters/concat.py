"""Concatenation."""

from __future__ import annotations

from torch import Tensor, nn

from torchcbl.adapters.base import Adapter, mix_channels
from torchcbl.adapters.bounded import weight_of
from torchcbl.backbone.site import Site


class Concat(Adapter):
    """Put the context beside the channels of each position, and map both through one linear map (a 1 x 1 convolution).

        h' = W_h h + W_z z + b        which is W [h; z] + b with W = [W_h, W_z]

    It can mix channels, which `film` cannot. Cost: C (C + D + 1) parameters and C^2 multiply-adds per position, so it
    is dear where C is large.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        identity: Whether W_h starts as the identity and W_z and b at zero, so that h' = h (to the last bit in float32
            and float64; to the rounding of lower precision under autocast); else as nn.Linear starts.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops: the adapter of its released code, there without an identity
        start.

    Example:
        >>> import torch
        >>> concat = Concat(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(concat(h, torch.randn(8, 5)), h)
        True
    """

    def __init__(self, site: Site, context_dim: int, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        self.hidden = nn.Linear(site.channels, site.channels, bias=False)
        self.linear = nn.Linear(context_dim, site.channels)
        if identity:
            nn.init.eye_(self.hidden.weight)
            nn.init.zeros_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D)."""
        mixed = mix_channels(weight_of(self.hidden), h, self.site.channel_dim)
        return (mixed + self.per_channel(self.linear(z), h)).to(h.dtype)  # which autocast may have lowered
