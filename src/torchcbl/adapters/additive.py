"""A low-rank shift."""

from __future__ import annotations

from torch import Tensor, nn

from torchcbl.adapters.base import Adapter, check_positive
from torchcbl.backbone.site import Site


class Additive(Adapter):
    """Shift each channel by a low-rank function of the context.

        h' = h + U V z + b,    V of shape (r, D), U of shape (C, r)

    The cheapest: a bias that depends on the output. It cannot silence or amplify. Cost: r (D + C) + C parameters, and
    one addition per element of h.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        rank: r, at least 1.
        identity: Whether U and b start at zero, so that h' = h bit for bit; else as nn.Linear starts.

    Raises:
        ValueError: `rank` is below 1.

    Source:
        The additive feedback of Nayebi et al. 2018, Task-Driven Convolutional Recurrent Models of the Visual System,
        arXiv 1807.00053, with the low-rank factors of Hu et al. 2021, LoRA, arXiv 2106.09685.

    Example:
        >>> import torch
        >>> additive = Additive(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(additive(h, torch.randn(8, 5)), h)
        True
    """

    def __init__(self, site: Site, context_dim: int, rank: int = 8, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        check_positive("Additive", "rank", rank)
        self.down = nn.Linear(context_dim, rank, bias=False)
        self.up = nn.Linear(rank, site.channels)
        if identity:
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D)."""
        return h + self.per_channel(self.up(self.down(z)), h)
