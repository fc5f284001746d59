"""Finding things out by trying: seeded noise, other weights, and how far an output moved."""

from __future__ import annotations

import torch
from torch import Tensor


def noise_like(tensor: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of a tensor's shape, dtype and device: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    # the device is named, since torch.set_default_device would have another one serve this generator
    return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)
