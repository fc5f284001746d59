"""In which dtype what a loop adds computes: that of its own weights, whatever the backbone hands it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def weights_dtype(module: object) -> torch.dtype | None:
    """Return the dtype that all floating-point parameters of a module have; None where they differ, or without any.

    Example:
        >>> weights_dtype(nn.Linear(2, 3).bfloat16())
        torch.bfloat16
        >>> weights_dtype(nn.ReLU()) is None
        True
    """
    if not isinstance(module, nn.Module):
        return None
    dtypes = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def autocast_chooses(value: Tensor) -> bool:
    """Say whether `torch.autocast` is on where a tensor is, and chooses the dtype of each operation."""
    return torch.is_autocast_enabled(value.device.type)


def in_weights_dtype(module: nn.Module, value: Tensor) -> Tensor:
    """Return a value in the dtype of a module's weights, as it is where autocast chooses dtypes."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and weight.dtype == value.dtype:  # spares most calls the walk through the parameters
        return value
    dtype = weights_dtype(module)
    if dtype is None or dtype == value.dtype or autocast_chooses(value):
        return value
    return value.to(dtype)
