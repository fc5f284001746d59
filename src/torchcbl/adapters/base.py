"""What every adapter is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

from torchcbl.backbone.site import Site


class Adapter(nn.Module, ABC):
    """A feedback adapter: refines a hidden state h in the light of the context z (Eq. 4).

        h' = psi(h, z)

    Any nn.Module with this forward serves; this class is for those who want the signature checked. Where its weights
    have one dtype and h or z another, a loop hands it both in its own, and takes h' in h's; `torch.autocast` is left to
    choose by itself.

    Args:
        site: Where it stands: name, shape and channel axis of h.
        context_dim: D, the size of z.

    Example:
        >>> class Shift(Adapter):
        ...     def __init__(self, site, context_dim):
        ...         super().__init__(site, context_dim)
        ...         self.linear = nn.Linear(context_dim, site.channels)
        ...     def forward(self, h, z):
        ...         return h + self.per_channel(self.linear(z), h)
    """

    wants_mask = False
    """Whether forward takes a third argument: which positions are real, (B, N), from the call's `attention_mask`."""

    def __init__(self, site: Site, context_dim: int) -> None:
        super().__init__()
        self.site = site
        self.context_dim = context_dim

    @abstractmethod
    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h.

        Args:
            h: Hidden state, (B, C, ...) or (B, ..., C).
            z: Context, (B, D), or (B, N, D) or (B, H, W, D) where the output has positions.

        Returns:
            h', of h's shape.
        """

    def per_channel(self, values: Tensor, h: Tensor) -> Tensor:
        """View values per sample (B, C) or per position (B, ..., C) so that they broadcast over h.

        Values on a grid, (B, H, W, C), are resized to h's grid: averaged where that is coarser, else interpolated.

        Raises:
            ValueError: The values have positions, and h has others.
        """
        if values.ndim == 2:
            return values if len(self.site.shape) == 2 else values.view(self.site.broadcast_shape)
        if values.ndim != h.ndim:
            raise ValueError(self._mismatch(values, h))
        if values.ndim > 3:
            return resize_grid(values, h, self.site.channel_dim)
        placed = values.movedim(-1, self.site.channel_dim)
        position = 3 - self.site.channel_dim
        if placed.shape[position] != h.shape[position]:
            raise ValueError(self._mismatch(values, h))
        return placed

    def flat(self, h: Tensor) -> Tensor:
        """View h as positions and channels, (B, N, C); a state without positions has one."""
        moved = h.movedim(self.site.channel_dim, -1)
        return moved.unsqueeze(1) if h.ndim == 2 else moved.flatten(1, -2)

    def unflat(self, flat: Tensor, h: Tensor) -> Tensor:
        """View (B, N, C) in h's shape again."""
        moved = h.movedim(self.site.channel_dim, -1)
        return flat.reshape(moved.shape).movedim(-1, self.site.channel_dim)

    def _mismatch(self, values: Tensor, h: Tensor) -> str:
        return (
            f"the context has positions {tuple(values.shape[1:-1])}, but the hidden states of site '{self.site.name}' "
            f"have shape {tuple(h.shape)} with channels on axis {self.site.channel_dim}: choose a site with the "
            "output's "
            "own positions, or one context per sample, Context(per='sample')."
        )


def mix_channels(weight: Tensor, h: Tensor, channel_dim: int) -> Tensor:
    """Apply a linear map (out, C) to the channels of each position of h: a 1 x 1 convolution."""
    last = h.movedim(channel_dim, -1)
    if h.ndim > 2 and h.stride(channel_dim) > 1:  # keep h's memory format, on which later roundings depend
        first = h.movedim(channel_dim, 1)
        return (weight @ first.flatten(2)).reshape(h.shape[0], len(weight), *first.shape[2:]).movedim(1, channel_dim)
    return F.linear(last, weight).movedim(-1, channel_dim)


def check_positive(adapter: str, name: str, value: object) -> None:
    """Refuse a size that is no whole number above 0."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{adapter}'s {name} must be a whole number, at least 1, got {value!r}.")


def resize_grid(values: Tensor, h: Tensor, channel_dim: int) -> Tensor:
    """Resize (B, *grid, C) to the grid of h, and put the channels on h's channel axis."""
    grid = [size for axis, size in enumerate(h.shape) if axis not in (0, channel_dim)]
    first = values.movedim(-1, 1)
    if list(first.shape[2:]) != grid:
        if all(new <= old for new, old in zip(grid, first.shape[2:], strict=True)):
            pool: Callable[..., Tensor] = F.adaptive_avg_pool2d if len(grid) == 2 else F.adaptive_avg_pool3d
            first = pool(first, tuple(grid))
        else:
            mode = "bilinear" if len(grid) == 2 else "trilinear"
            first = F.interpolate(first, size=grid, mode=mode, align_corners=False)
    return first.movedim(1, channel_dim).to(values.dtype)  # autocast resizes volumes in float32


AdapterFactory = Callable[[Site, int], nn.Module]
AdapterChoice = str | nn.Module | AdapterFactory | Mapping[str, str | nn.Module | AdapterFactory]
