"""The channel axis of a hidden state, told from the modules that ran before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.Bilinear, nn.RNNBase)


def makes_channels(module: nn.Module) -> bool:
    """Say whether a module's kind tells where the channels are in what it returns."""
    return isinstance(module, FIRST + LAST) or _is_transposed_linear(module)


def channel_axis(
    shape: tuple[int, ...],
    leaves: Sequence[nn.Module] = (),
    follows: Callable[[nn.Module, int], bool] | None = None,
) -> int:
    """Tell the channel axis of h from the Conv, Linear, norm, attention or recurrent modules that ran before it.

    The latest of them need not have made h, as in a block that also returns the logits of an early exit; so it is the
    latest whose width is that of the axis it has its channels on. The latest of all may have had its axes moved
    (ConvNeXt), and has the last word where no width fits.

    Args:
        shape: Shape of h, batch first.
        leaves: Those modules, in the order in which they finished; where there are none, feature maps have channels at
            1, sequences last.
        follows: Asked where several axes fit: whether index 0 of an axis is made from channel 0 of a leaf alone.

    Example:
        >>> channel_axis((2, 16, 8, 8), [nn.Conv2d(3, 16, 3)]), channel_axis((2, 8, 8, 16), [nn.Linear(3, 16)])
        (1, 3)
        >>> channel_axis((2, 16, 8, 8), [nn.Linear(3, 16)])  # the axes were moved after it
        1
        >>> channel_axis((2, 16, 8, 8), [nn.Conv2d(3, 16, 3), nn.Linear(16, 5)])  # which has made something else
        1
    """
    if not leaves:
        return 1 if len(shape) != 3 else 2
    fitting = _fitting(shape, leaves)
    likeliest = fitting[0][1] if fitting else channels_of(leaves[-1], len(shape))
    if len({axis for _, axis in fitting}) > 1 and follows is not None:
        return next((axis for leaf, axis in fitting if follows(leaf, axis)), likeliest)
    return likeliest


def _fitting(shape: tuple[int, ...], leaves: Sequence[nn.Module]) -> list[tuple[nn.Module, int]]:
    """List leaves with axes as long as they are wide, the likeliest first: the usual ones, then others of the last."""
    usual: dict[int, nn.Module] = {}
    for leaf in reversed(leaves):
        axis = channels_of(leaf, len(shape))
        if shape[axis] == _width(leaf):
            usual.setdefault(axis, leaf)
    last = leaves[-1]
    moved = [(last, axis) for axis in (1, len(shape) - 1) if shape[axis] == _width(last)]
    return list(dict.fromkeys([*((leaf, axis) for axis, leaf in usual.items()), *moved]))


def channels_of(leaf: nn.Module, ndim: int) -> int:
    """The axis that a module's own output of so many axes has its channels on."""
    return 1 if isinstance(leaf, FIRST) else ndim - 1


def _width(leaf: nn.Module) -> int:
    """How many channels a module returns."""
    if isinstance(leaf, nn.RNNBase):
        return (leaf.proj_size or leaf.hidden_size) * (2 if leaf.bidirectional else 1)
    if isinstance(leaf, (nn.LayerNorm, nn.RMSNorm)):
        return leaf.normalized_shape[-1]
    names = ("out_channels", "num_features", "num_channels", "out_features", "embedding_dim", "embed_dim", "nf")
    return next((int(getattr(leaf, name)) for name in names if hasattr(leaf, name)), -1)


def _is_transposed_linear(module: nn.Module) -> bool:
    """Whether a module is GPT-2's `Conv1D`, a linear map with its weight the other way round."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
