"""Labelled images in memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """Hold labelled images as one array.

    Args:
        images: Raw intensities 0..255, uint8, shape (N, C, H, W), any strides.
        labels: The class of each image, int64, shape (N,), in 0..num_classes-1.
        num_classes: How many classes there are, K >= 2.

    Raises:
        TypeError: `images` is not uint8 or `labels` is not int64.
        ValueError: A shape is wrong, the lengths differ, nothing is there, or a label is out of range.

    Example:
        >>> Images(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 9]), num_classes=9)
        Traceback (most recent call last):
        ...
        ValueError: label 9 at index 1 is outside 0..8 (num_classes=9): correct the label or raise num_classes
    """

    images: Tensor
    labels: Tensor
    num_classes: int

    def __post_init__(self) -> None:
        self._check_arrays()
        self._check_labels()

    def _check_arrays(self) -> None:
        for name, tensor, dtype in (
            ("images", self.images, torch.uint8),
            ("labels", self.labels, torch.int64),
        ):
            if tensor.dtype != dtype:
                raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}: convert with .to({dtype})")
        if self.images.ndim != 4 or self.labels.ndim != 1:
            shapes = f"{tuple(self.images.shape)} and {tuple(self.labels.shape)}"
            raise ValueError(f"images must be (N, C, H, W) and labels (N,), got {shapes}")
        if len(self.images) != len(self.labels) or self.images.numel() == 0:
            raise ValueError(
                f"got {len(self.images)} images of shape {tuple(self.images.shape[1:])} and "
                f"{len(self.labels)} labels: give one label per image, and at least one image"
            )

    def _check_labels(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}")
        outside = (self.labels < 0) | (self.labels >= self.num_classes)
        if outside.any():
            index = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"label {int(self.labels[index])} at index {index} is outside 0..{self.num_classes - 1} "
                f"(num_classes={self.num_classes}): correct the label or raise num_classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Images:
        """Copy the images at `indices` (int64, shape (M,)), in that order."""
        return Images(self.images[indices], self.labels[indices], self.num_classes)


def check_normalisation(mean: tuple[float, ...], std: tuple[float, ...], *, num_channels: int) -> None:
    """Raise ValueError unless `mean` and `std` have one number per channel and every `std` is positive."""
    if len(mean) != num_channels or len(std) != num_channels:
        raise ValueError(
            f"mean and std need one number for each of the {num_channels} channels, got {len(mean)} and {len(std)}"
        )
    if not all(value > 0 for value in std):
        raise ValueError(f"std must be positive in every channel, got {std}: a constant channel cannot be normalised")


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation per channel, of intensities divided by 255.

    The sums run over a histogram of whole numbers, so they are exact to float64 whatever N is.

    Args:
        images: uint8, shape (N, C, H, W).

    Returns:
        Mean and standard deviation (divisor N), each of length C, in [0, 1].

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in images.unbind(1):
        share = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = float(share @ levels)
        means.append(mean)
        stds.append(float(share @ (levels - mean) ** 2) ** 0.5)
    return tuple(means), tuple(stds)
