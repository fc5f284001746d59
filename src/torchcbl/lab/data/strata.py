"""Stratified splits and samples of indices, the same on every machine and for every arm and seed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def stratified_split(labels: Tensor, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Divide indices in two so that each class has the same share in both parts.

    Class k gives size * N_k / N images to the second part; where that is not whole, the largest remainders
    are rounded up (ties: the lower class), so the second part has exactly `size` images.

    Args:
        labels: Classes, int64, shape (N,).
        size: Images in the second part, at least one per class and leaving at least one per class.
        seed: Which split, >= 0; the same seed gives the same split everywhere.

    Returns:
        Indices of the first part, (N - size,), and of the second, (size,), both ascending.

    Raises:
        ValueError: `size` leaves a class without an image in one of the parts, or `seed` is negative.

    Example:
        >>> rest, held_out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), size=3, seed=0)
        >>> torch.tensor([0, 0, 0, 0, 1, 1])[held_out].tolist()
        [0, 0, 1]
    """
    if seed < 0:
        raise ValueError(f"the split's seed must be 0 or more, got {seed}")
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    shares = _shares(sizes, size)
    if not ((shares >= 1) & (shares < sizes)).all():
        raise ValueError(
            f"cannot hold out {size} of {len(labels)} samples: each of the {len(classes)} classes (the smallest has "
            f"{sizes.min()}) must keep one in both parts; choose a validation_size nearer to {len(labels) // 2}"
        )
    chosen = _chosen(labels, classes, shares, seed)
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def stratified_sample(labels: Tensor, size: int, seed: int) -> Tensor:
    """Choose what `stratified_split` holds out, each class by its share, also where that leaves one with none.

    Args:
        labels: Classes, int64, shape (N,).
        size: How many, in [0, N].
        seed: Which sample, >= 0.

    Returns:
        Indices (size,), ascending.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1])
        >>> labels[stratified_sample(labels, size=3, seed=0)].tolist()
        [0, 0, 0]
    """
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    return torch.from_numpy(np.flatnonzero(_chosen(labels, classes, _shares(sizes, size), seed)))


def _chosen(labels: Tensor, classes: NDArray[np.int64], shares: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    # RandomState's stream is frozen by numpy; a split must not change with a numpy release.
    random = np.random.RandomState(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels.numpy() == label)
        chosen[random.permutation(members)[:share]] = True
    return chosen


def _shares(sizes: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    """Whole numbers that sum to `size` and are nearest to proportional (largest remainders)."""
    shares, remainders = np.divmod(sizes * size, sizes.sum())
    missing = size - int(shares.sum())
    if missing > 0:
        shares[np.argsort(-remainders, kind="stable")[:missing]] += 1
    return shares
