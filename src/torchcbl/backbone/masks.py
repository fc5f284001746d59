"""Which positions of a sequence are real, and which are padding that a sample's answer must not depend on."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from torchcbl.backbone.calls import Call

_TO_FRAMES = "_get_feature_vector_attention_mask"
"""How speech models of transformers bring a mask over samples of sound to one over their frames."""
_COUNT_FRAMES = "_get_feat_extract_output_lengths"
"""How many frames they make of so many samples of sound."""


def attention_mask(backbone: nn.Module, call: Call) -> Tensor | None:
    """Return a call's `attention_mask` (B, N), given by name or by position, or the decoder's where that has arguments.

    Args:
        backbone: The network.
        call: Its arguments.

    Returns:
        Booleans, or ones and zeros, of every sample or (1, N) of all; None without.
    """
    named = _by_name(backbone, call)
    decodes = any(name.startswith("decoder_") and value is not None for name, value in named.items())
    mask = named.get("decoder_attention_mask" if decodes else "attention_mask")
    return mask if isinstance(mask, Tensor) and mask.ndim == 2 else None


class RealPositions:
    """Which positions are real in the tensors of a call, as its `attention_mask` says.

    Args:
        backbone: The network.
        mask: The call's mask, (B, N) or (1, N); None where it has none.
        batch: B, how many samples there are.
    """

    def __init__(self, backbone: nn.Module, mask: Tensor | None, batch: int) -> None:
        self.backbone = backbone
        if mask is not None and mask.shape[0] != batch:
            mask = mask.expand(batch, -1) if mask.shape[0] == 1 else None
        self.mask = mask
        self._frames: dict[int, Tensor | None] = {}

    def of(self, tensor: Tensor, axis: int) -> Tensor | None:
        """Return which positions of a tensor (B, N, F) or (B, F, N) are real, (B, N); None where all are.

        Args:
            tensor: Any one of the call: y, the context or what it is made from, a hidden state.
            axis: Where its positions stand.
        """
        if self.mask is None or tensor.ndim != 3:
            return None
        length = tensor.shape[axis]
        if self.mask.shape[1] == length:
            return self.mask
        if length not in self._frames:
            self._frames[length] = _over_frames(self.backbone, self.mask, length)
        return self._frames[length]

    def select(self, index: Tensor) -> RealPositions:
        """Return those of some of the samples, given their indices (b,)."""
        mask = None if self.mask is None else self.mask.index_select(0, index)
        return RealPositions(self.backbone, mask, len(index))


def _over_frames(backbone: nn.Module, mask: Tensor, length: int) -> Tensor | None:
    """Bring a mask over samples of sound to `length` frames; None where the network makes other frames of them."""
    owner = next((module for module in backbone.modules() if hasattr(module, _TO_FRAMES)), None)
    if owner is None:
        return None
    count = getattr(owner, _COUNT_FRAMES, None)
    if count is not None and int(count(torch.tensor(mask.shape[1]))) != length:
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
