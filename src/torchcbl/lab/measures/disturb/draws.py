"""Chance, seeded by name: what is drawn for an image depends on what is done to it and on its index alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.float64]
"""Images in [0, 1], (N, H, W, C)."""
Random = np.random.RandomState  # its streams are frozen by numpy; a disturbance must not change with a release


def random_of(name: str, level: object, index: int) -> Random:
    """Make the generator of one image under one disturbance.

    Example:
        >>> random_of("fog", 3, 7).randint(1000) == random_of("fog", 3, 7).randint(1000)
        True
    """
    digest = hashlib.sha256(f"{name}/{level}/{index}".encode()).digest()
    return Random(np.frombuffer(digest, dtype="<u4"))


def randoms(name: str, level: object, indices: Iterable[int]) -> list[Random]:
    """Make the generators of some images."""
    return [random_of(name, level, int(index)) for index in indices]


def stacked(randoms: Sequence[Random], draw: Callable[[Random], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Draw once for each image: (N, ...)."""
    return np.stack([draw(random) for random in randoms])


def uniform(randoms: Sequence[Random], low: float, high: float, *shape: int) -> NDArray[np.float64]:
    """Draw uniform numbers for each image: (N, *shape)."""
    return stacked(randoms, lambda random: np.asarray(random.uniform(low, high, shape)))


def normal(randoms: Sequence[Random], mean: float, std: float, *shape: int) -> NDArray[np.float64]:
    """Draw normal numbers for each image: (N, *shape)."""
    return stacked(randoms, lambda random: np.asarray(random.normal(mean, std, shape)))
