"""Whole batches, sliced from memory: shuffled, cropped, flipped and normalised without a loop over images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.data.images import Images, check_normalisation

PADDING = 4


class ByEpoch:
    """Batches whose order and augmentation depend on the epoch, whole or in shares."""

    epoch = 0
    share, num_shares = 0, 1

    def take_share(self, share: int, num_shares: int) -> None:
        """Keep of every batch only the samples at `share`, `share` + `num_shares`, ...: one process's part of it.

        All shares together are the batch. One that is left with nothing, as of a short last batch, gives the batch's
        first two samples instead, which are not to be counted.

        Raises:
            ValueError: `share` is not in [0, num_shares).
        """
        if not 0 <= share < num_shares:
            raise ValueError(f"share must be in [0, {num_shares}), got {share}")
        self.share, self.num_shares = share, num_shares

    def slices(self, count: int, batch_size: int) -> Iterator[slice]:
        """Cut `count` samples into batches, and say where this share's are.

        Example:
            >>> batches = ByEpoch()
            >>> batches.take_share(1, 2)
            >>> [list(range(5))[chosen] for chosen in batches.slices(5, batch_size=4)]
            [[1, 3], [4]]
        """
        for start in range(0, count, batch_size):
            stop = min(start + batch_size, count)
            first = start + self.share
            yield slice(first, stop, self.num_shares) if first < stop else slice(start, min(start + 2, stop))

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (counted from 0) whose order and augmentation the next iteration takes.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be 0 or more, got {epoch}")
        self.epoch = epoch


class Batches(ByEpoch):
    """Iterate over one epoch of (images, labels); hand it to a Trainer as its dataloader.

    x = (raw / 255 - mean) / std, float32, (B, C, H, W); labels int64, (B,). The last batch may be short.

    With a `seed` (training) the order, crops and flips of epoch e are drawn from (seed, e) alone: a run
    resumed at e needs no saved generator, and `augment` does not change the order. Without one (validation,
    test) the images come in their own order, untouched.

    Call `set_epoch(e)` before each epoch (in `on_train_epoch_start`). The epoch is read when the first batch
    is asked for, not by `iter()`, because Lightning makes the iterator before it starts a resumed epoch.

    Args:
        images: What to cut into batches.
        mean: Per channel, length C, in [0, 1].
        std: Per channel, length C, positive.
        batch_size: Images in a batch, at least 1.
        seed: Shuffle with this seed, >= 0; None keeps the order.
        augment: Crop each image at a random place after padding it by four black pixels (raw 0, before
            normalising), and mirror half of them; only with a `seed`.
        memory_format: Of the images: torch.contiguous_format, or torch.channels_last, in which convolutions
            on a CPU are often faster.

    Raises:
        ValueError: `batch_size` or `seed` is out of range, `augment` comes without `seed`, or `mean` and
            `std` do not fit the images.

    Example:
        >>> images = Images(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), torch.arange(5), num_classes=5)
        >>> batches = Batches(images, mean=(0.5,), std=(0.5,), batch_size=2)
        >>> [(tuple(x.shape), labels.tolist()) for x, labels in batches]
        [((2, 1, 8, 8), [0, 1]), ((2, 1, 8, 8), [2, 3]), ((1, 1, 8, 8), [4])]
    """

    def __init__(
        self,
        images: Images,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        batch_size: int,
        seed: int | None = None,
        augment: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        _, channels, _, width = images.images.shape
        check_normalisation(mean, std, num_channels=channels)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be 0 or more, or None to keep the order, got {seed}")
        if augment and seed is None:
            raise ValueError("augment=True needs a seed: images that are evaluated are never augmented")
        self.batch_size, self.seed, self.augment, self.memory_format = (
            batch_size,
            seed,
            augment,
            memory_format,
        )
        # Channels last: a row of an image is then one run of bytes, which copies and vectorises well.
        self._pixels = images.images.permute(0, 2, 3, 1).contiguous().numpy()
        self._labels = images.labels
        scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        shift = -torch.tensor(mean, dtype=torch.float64) / torch.tensor(std, dtype=torch.float64)
        self._scale, self._shift = scale.float().repeat(width), shift.float().repeat(width)

    def __len__(self) -> int:
        return -(-len(self._labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        draws = self._draw()
        for chosen in self.slices(len(self._labels), self.batch_size):
            indices = draws.order[chosen]
            pixels = self._pixels[indices.numpy()]
            if self.augment:
                pixels = crop_and_flip(pixels, draws.corners[chosen].numpy(), draws.mirrored[chosen].numpy())
            yield self._normalise(pixels), self._labels[indices]

    def _draw(self) -> _Draws:
        count = len(self._labels)
        if self.seed is None:
            return _Draws(torch.arange(count), torch.empty(0), torch.empty(0))
        generator = epoch_generator(self.seed, self.epoch)
        return _Draws(
            order=torch.randperm(count, generator=generator),
            corners=torch.randint(0, 2 * PADDING + 1, (count, 2), generator=generator),
            mirrored=torch.rand(count, generator=generator) < 0.5,
        )

    def _normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        rows = torch.from_numpy(pixels).flatten(2).float()
        x = rows.mul_(self._scale).add_(self._shift).view(pixels.shape).permute(0, 3, 1, 2)
        return x.contiguous(memory_format=self.memory_format)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Make the generator of one epoch, from (seed, epoch) alone.

    torch's CPU generator keeps 32 bits of a seed, so seed * 2**32 + epoch would forget the seed: both are hashed.
    """
    entropy = np.random.SeedSequence((seed, epoch)).generate_state(1)
    return torch.Generator().manual_seed(int(entropy[0]))


@dataclass(frozen=True)
class _Draws:
    """One epoch's random numbers; row i belongs to the i-th image of the epoch."""

    order: Tensor
    corners: Tensor
    mirrored: Tensor


def crop_and_flip(
    pixels: NDArray[np.uint8], corners: NDArray[np.int64], mirrored: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Pad each image by four black pixels, crop it back to its size, and mirror some of them left to right.

    Args:
        pixels: Raw images, uint8, (B, H, W, C).
        corners: The crop's top and left in the padded image, 0..8, (B, 2).
        mirrored: Which crops to mirror, bool, (B,).

    Returns:
        The new images, uint8, (B, H, W, C).

    Example:
        >>> image = np.array([[1, 2], [3, 4]], dtype=np.uint8).reshape(1, 2, 2, 1)
        >>> crop_and_flip(image, np.array([[4, 5]]), np.array([True]))[0, :, :, 0].tolist()
        [[0, 2], [0, 4]]
    """
    count, height, width, channels = pixels.shape
    padded = np.zeros((count, height + 2 * PADDING, width + 2 * PADDING, channels), np.uint8)
    padded[:, PADDING:-PADDING, PADDING:-PADDING] = pixels
    # All windows as a view of the joined (width, channel) axis: choosing one per image copies whole rows.
    windows = np.lib.stride_tricks.sliding_window_view(
        padded.reshape(count, height + 2 * PADDING, -1), (height, width * channels), axis=(1, 2)
    )
    crops: NDArray[np.uint8] = windows[np.arange(count), corners[:, 0], corners[:, 1] * channels].reshape(pixels.shape)
    crops[mirrored] = crops[mirrored, :, ::-1]
    return crops
