"""Which positions of a sequence are real, and which are padding that a sample's answer must not depend on."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from torchcbl.backbone.calls import Call

_TO_FRAMES = "_get_feature_vector_attention_mask"
"""How speech models of transformers bring a mask over samples of sound to one over their frames."""


def real_positions(backbone: nn.Module, call: Call, source: Tensor, channel_dim: int) -> Tensor | None:
    """Return which positions of what the context is made from are real, (B, N), as the call's `attention_mask` says.

    Args:
        backbone: The network.
        call: Its arguments; where it has a decoder's, the mask is that of the decoder.
        source: What the context is made from, (B, N, F) or (B, F, N).
        channel_dim: Which axis of it the features are on.

    Returns:
        Booleans, or ones and zeros; None when there is no mask, or none that fits.
    """
    if source.ndim != 3:
        return None
    named = _by_name(backbone, call)
    decodes = any(name.startswith("decoder_") and value is not None for name, value in named.items())
    mask = named.get("decoder_attention_mask" if decodes else "attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 2:
        return None
    length = source.shape[1 if channel_dim in (-1, 2) else 2]
    if mask.shape[1] == length:
        return mask
    owner = next((module for module in backbone.modules() if hasattr(module, _TO_FRAMES)), None)
    if owner is None:
        return None
    frames = getattr(owner, _TO_FRAMES)(length, mask)
    return frames if isinstance(frames, Tensor) and frames.shape[1:] == (length,) else None


def _by_name(backbone: nn.Module, call: Call) -> dict[str, object]:
    """Return the arguments by name, those given by position too where the signature names them."""
    if len(call.args) < 2:  # no mask stands first
        return call.kwargs
    try:
        bound = inspect.signature(backbone.forward).bind_partial(*call.args)
    except (TypeError, ValueError):  # a forward without a signature, or with another
        return call.kwargs
    return {**bound.arguments, **call.kwargs}
