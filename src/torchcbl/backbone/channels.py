"""The channel axis of a hidden state, told from the module that made it."""

from __future__ import annotations

from collections.abc import Callable

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


def channel_axis(shape: tuple[int, ...], leaf: nn.Module | None, follows: Callable[[int], bool] | None = None) -> int:
    """Tell the channel axis of h from the last Conv, Linear, norm, attention or recurrent module inside its site.

    Args:
        shape: Shape of h, batch first.
        leaf: That module; None if there is none, whereupon feature maps have channels at 1, sequences last.
        follows: Asked when sizes alone cannot tell, as where a module moves its axes at the end (ConvNeXt) and a side
            of h is as long as there are channels: whether index 0 of an axis is made from channel 0 of the leaf alone.

    Example:
        >>> channel_axis((2, 16, 8, 8), nn.Conv2d(3, 16, 3)), channel_axis((2, 8, 8, 16), nn.Linear(3, 16))
        (1, 3)
        >>> channel_axis((2, 16, 8, 8), nn.Linear(3, 16))  # the axes were moved after it
        1
    """
    last = len(shape) - 1
    if leaf is None:
        return 1 if len(shape) != 3 else 2
    usual = channels_of(leaf, len(shape))
    fitting = [axis for axis in dict.fromkeys((usual, 1, last)) if shape[axis] == _width(leaf)]
    if len(fitting) > 1 and follows is not None:
        return next((axis for axis in fitting if follows(axis)), usual)
    return fitting[0] if fitting else usual


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
