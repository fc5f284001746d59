"""A gated update, as of a recurrent cell."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcbl.adapters.base import Adapter, mix_channels
from torchcbl.backbone.site import Site


class Recurrent(Adapter):
    """Update h by z as a GRU cell updates its state by its input, at each position.

        r = sigmoid(U_r h + W_r z + b_r),   u = sigmoid(U_u h + W_u z + b_u)
        n = tanh(U_n (r * h) + W_n z + b_n)
        h' = h + s * u * (n - h)

    With s = 1 it is the GRU, which cannot start as the identity: u would have to be zero, where its gradient is zero
    too. So s, one number per channel, starts at zero (h' = h bit for bit) and is learned. Cost: 3 C (C + D + 1) + C
    parameters and 3 C^2 multiply-adds per position: the dearest, and since n lies in (-1, 1) it suits states of that
    size.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        identity: Whether s starts at zero; else at one.

    Source:
        Cho et al. 2014, Learning Phrase Representations using RNN Encoder-Decoder, arXiv 1406.1078; the scale that
        starts at zero is that of Bachlechner et al. 2020, ReZero is All You Need, arXiv 2003.04887.

    Example:
        >>> recurrent = Recurrent(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(recurrent(h, torch.randn(8, 5)), h)
        True
    """

    def __init__(self, site: Site, context_dim: int, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        self.gates = nn.Linear(site.channels, 2 * site.channels, bias=False)
        self.candidate = nn.Linear(site.channels, site.channels, bias=False)
        self.linear = nn.Linear(context_dim, 3 * site.channels)
        self.scale = nn.Parameter(torch.full((site.channels,), 0.0 if identity else 1.0))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D)."""
        axis = self.site.channel_dim
        from_z = [self.per_channel(part, h) for part in self.linear(z).chunk(3, dim=-1)]
        from_h = mix_channels(self.gates.weight, h, axis).chunk(2, dim=axis)
        reset, update = (torch.sigmoid(a + b) for a, b in zip(from_h, from_z[:2], strict=True))
        new = torch.tanh(mix_channels(self.candidate.weight, reset * h, axis) + from_z[2])
        scale = self.scale.to(h.dtype).view([-1 if a == axis else 1 for a in range(h.ndim)])  # autocast's dtype too
        return h + scale * update * (new - h)
