"""The context z = g(y) (Eq. 3): what the network's own output says, as a vector the adapters can use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchcbl.dtypes import in_weights_dtype
from torchcbl.solvers.jacobian import is_linearising


@dataclass(frozen=True)
class Context:
    """Describe g: what the context is made from, its size, and whether there is one per sample or per position.

        z = W s + b        with s = y, softmax(y), or a submodule's output

    Args:
        dim: D, the size of z; at least 1.
        source: "logits" for y, "probs" for softmax(y) over the classes, or the dotted name of a submodule.
        detach: Whether to stop gradients from flowing back through z into the step before. A choice of training alone:
            every gradient rule keeps to it, while solvers, `contraction` and `jacobian_penalty` see the whole map.
        map: Called with the number of features of s and with `dim`, returns the module that is g; None for the
            affine map above. The module takes s (B, F), (B, N, F) or (B, H, W, F) and returns z with `dim` in place of
            F.
        per: "sample" for one z (B, D) per sample: s is averaged over its positions (those that `attention_mask`
            admits); "position" for one at each position of s, (B, N, D) or (B, H, W, D), where s counts as 0 at those
            that it does not admit. None: as y has positions or not.

    Raises:
        ValueError: `dim` is below 1, or `per` is neither.
        TypeError: A field has another type.

    Source:
        Fein-Ashley, Contextual Backpropagation Loops, Eq. 3; the affine map of the logits is its released code's.

    Example:
        >>> Context(dim=64, source="probs")
        Context(dim=64, source='probs', detach=False, map=None, per=None)
    """

    dim: int = 64
    source: str = "logits"
    detach: bool = False
    map: Callable[[int, int], nn.Module] | None = None
    per: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.dim, bool) or not isinstance(self.dim, int):
            raise TypeError(f"Context.dim must be a whole number, got {self.dim!r}.")
        if self.dim < 1:
            raise ValueError(f"Context.dim must be at least 1, got {self.dim}.")
        if not isinstance(self.source, str):
            raise TypeError(f'Context.source must be "logits", "probs" or a submodule\'s name, got {self.source!r}.')
        if self.map is not None and not callable(self.map):
            raise TypeError(f"Context.map must be callable with (features, dim), got {type(self.map).__name__}.")
        if self.per not in (None, "sample", "position"):
            raise ValueError(f'Context.per must be "sample", "position" or None, got {self.per!r}.')

    @property
    def module_name(self) -> str | None:
        """Name of the submodule that z is made from, or None when it is made from y."""
        return None if self.source in ("logits", "probs") else self.source


class ContextMap(nn.Module):
    """Compute z from y or from a submodule's output, which is cast to the dtype of the map's weights (not in autocast).

    Args:
        context: What to make it from.
        features: F, the features of that source.
        channel_dim: Which axis of the source they are on.
        pool: Whether to take the mean over all other axes but the batch.
    """

    def __init__(self, context: Context, features: int, channel_dim: int, pool: bool) -> None:
        super().__init__()
        self.source = context.source
        self.dim = context.dim
        self.detach = context.detach
        self.channel_dim = channel_dim
        self.pool = pool
        self.map = nn.Linear(features, context.dim) if context.map is None else context.map(features, context.dim)

    def forward(self, source: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute z (B, D) or (B, *positions, D).

        Args:
            source: y or a submodule's output, batch first.
            mask: Which positions are real, (B, N) of booleans or of 0 and 1; None when all are.
        """
        if self.detach and not is_linearising():
            source = source.detach()
        if self.channel_dim not in (-1, source.ndim - 1):
            source = source.movedim(self.channel_dim, -1)
        if mask is not None and (source.ndim != 3 or mask.shape != source.shape[:2]):
            mask = None  # it is none of this source's positions
        if mask is not None:
            source = source.masked_fill((mask == 0)[..., None], 0)  # a factor of 0 would make NaN of infinity
        if self.source == "probs":
            source = source.softmax(dim=-1)
        if self.pool and source.ndim > 2:
            source = _mean_over_positions(source, mask)
        z: Tensor = self.map(in_weights_dtype(self.map, source))
        if z.ndim != source.ndim or z.shape[-1] != self.dim:
            raise ValueError(
                f"the context map returned shape {tuple(z.shape)} for {tuple(source.shape)}, expected (B, {self.dim}) "
                "or "
                f"(B, N, {self.dim}), axis by axis but the last as it was given: Context.dim must be what the map "
                "returns."
            )
        return z

    def extra_repr(self) -> str:
        """Name the source."""
        return f"source={self.source!r}, detach={self.detach}"


def _mean_over_positions(source: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of (B, *positions, F) over the positions that the mask admits."""
    if mask is None:
        return source.flatten(1, -2).mean(dim=1)
    weights, wide = mask.to(source.dtype), torch.promote_types(source.dtype, torch.float32)  # float16 ends at 65,504
    total, count = (source * weights[..., None]).sum(dim=1, dtype=wide), weights.sum(dim=1, keepdim=True, dtype=wide)
    return (total / count.clamp(min=1)).to(source.dtype)
