"""Finding things out by trying: seeded noise, other weights, and how far an output moved."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def noise_like(tensor: Tensor, seed: int) -> Tensor:
    """Return standard normal noise of a tensor's shape, dtype and device: the same numbers on every device."""
    generator = torch.Generator().manual_seed(seed)
    # the device is named, since torch.set_default_device would have another one serve this generator
    return torch.randn(tensor.shape, generator=generator, device="cpu").to(tensor)


def move_at_random(module: nn.Module) -> None:
    """Add a little seeded noise to all parameters, so that what starts at zero, or next to it, silences nothing."""
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            if parameter.is_floating_point():
                parameter.add_(0.1 * noise_like(parameter, seed))


def unmoved(some: Tensor, others: Tensor) -> Tensor:
    """Say of each entry whether it is the same number, or NaN, in both."""
    return (some == others) | (some.isnan() & others.isnan())


def distance(some: Tensor, others: Tensor) -> Tensor:
    """Return how far each entry moved: 0 where both are NaN or one infinity, infinite where one alone is finite.

    Example:
        >>> nan, inf = float("nan"), float("inf")
        >>> distance(torch.tensor([1.0, nan, inf, nan]), torch.tensor([3.0, nan, inf, 2.0]))
        tensor([2., 0., 0., inf])
    """
    moved = (some - others).abs().nan_to_num(nan=float("inf"), posinf=float("inf"))
    return moved.masked_fill(unmoved(some, others), 0.0)
