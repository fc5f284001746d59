"""What every adapter is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from torchcbl.site import Site


class Adapter(nn.Module, ABC):
    """A feedback adapter: refines a hidden state h in the light of the context z (Eq. 4).

        h' = psi(h, z)

    Any nn.Module with this forward serves; this class is for those who want the signature checked.

    Args:
        site: Where it stands: name, shape and channel axis of h.
        context_dim: D, the size of z.

    Example:
        >>> class Shift(Adapter):
        ...     def __init__(self, site, context_dim):
        ...         super().__init__(site, context_dim)
        ...         self.linear = nn.Linear(context_dim, site.channels)
        ...     def forward(self, h, z):
        ...         return h + self.per_channel(self.linear(z))
    """

    def __init__(self, site: Site, context_dim: int) -> None:
        super().__init__()
        self.site = site
        self.context_dim = context_dim

    @abstractmethod
    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h.

        Args:
            h: Hidden state, (B, C, ...) or (B, N, C).
            z: Context, (B, D), or (B, N, D) where the output has positions.

        Returns:
            h', of h's shape.
        """

    def per_channel(self, values: Tensor) -> Tensor:
        """View values per sample (B, C) or per position (B, N, C) so that they broadcast over h.

        Raises:
            ValueError: The values have positions and h has not the same kind of positions.
        """
        if values.ndim == 2:
            return values if len(self.site.shape) == 2 else values.view(self.site.broadcast_shape)
        if values.ndim == len(self.site.shape) and self.site.channel_dim == values.ndim - 1:
            return values
        raise ValueError(
            f"the context has one vector per position, but site '{self.site.name}' has hidden states of shape "
            f"{self.site.shape} with channels on axis {self.site.channel_dim}: choose a site of shape (B, N, C), or "
            "make the context from a submodule with one vector per sample."
        )


AdapterFactory = Callable[[Site, int], nn.Module]
AdapterChoice = str | nn.Module | AdapterFactory | Mapping[str, str | nn.Module | AdapterFactory]
