"""Seeds: what is drawn at random for an arm depends on labels alone."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def example_of(shape: tuple[int, int, int], size: int = 2) -> Tensor:
    """Draw noise in the form of normalised samples (size, C, H, W); zeros would make every gate look dead."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *shape, generator=generator).contiguous(memory_format=torch.channels_last)


def derive_seed(*parts: object) -> int:
    """Make an independent 63-bit seed of some labels, the same on every machine.

    Example:
        >>> derive_seed(0, "cbl") == derive_seed(0, "cbl") != derive_seed(1, "cbl")
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator as seeded here, and leave its state outside untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
