"""A data set of images: three parts in memory, and what normalises them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from torchcbl.lab.data.batches import Batches
from torchcbl.lab.data.dataset import Dataset, Form
from torchcbl.lab.data.images import Images, check_normalisation
from torchcbl.lab.data.strata import stratified_sample


@dataclass(frozen=True, eq=False)
class ImageDataset(Dataset):
    """Hold the three parts of a data set of images and what normalises them.

    Args:
        train: What a model is fitted to.
        validation: What is looked at after every epoch.
        test: What is looked at once, after the last epoch.
        mean: Per channel, of the training part divided by 255; length C.
        std: Per channel, the standard deviation of the same (divisor N, not N - 1); positive, length C.
        classes: Their names; none are the digits "0", "1", ...
        augment: Whether training batches are cropped and mirrored at random.

    Raises:
        ValueError: The parts differ in image shape or classes, or `mean`, `std` or `classes` do not fit them.

    Example:
        >>> part = Images(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), num_classes=2)
        >>> data = ImageDataset(part, part, part, mean=(0.5,), std=(0.25,))
        >>> len(data.train), data.form
        (2, Form(shape=(1, 8, 8), classes=('0', '1')))
    """

    train: Images
    validation: Images
    test: Images
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    augment: bool = False

    def __post_init__(self) -> None:
        for name, part in (("validation", self.validation), ("test", self.test)):
            if part.images.shape[1:] != self.train.images.shape[1:] or part.num_classes != self.num_classes:
                raise ValueError(
                    f"{name} holds {tuple(part.images.shape[1:])} images of {part.num_classes} classes, but "
                    f"train {self.image_shape} images of {self.num_classes}: all parts must be alike"
                )
        check_normalisation(self.mean, self.std, num_channels=self.image_shape[0])
        if self.classes and len(self.classes) != self.num_classes:
            raise ValueError(f"got {len(self.classes)} names for {self.num_classes} classes: give one name to each")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of every image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """K, the same for all parts."""
        return self.train.num_classes

    @property
    def form(self) -> Form:
        """See `Dataset.form`."""
        return Form(self.image_shape, self.classes or tuple(map(str, range(self.num_classes))))

    def size(self, part: str) -> int:
        """See `Dataset.size`."""
        return len(self.images(part))

    def raw(self, part: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """See `Dataset.raw`: uint8, (N, C, H, W)."""
        images = self.images(part)
        return images.images.numpy(), images.labels.numpy()

    def images(self, part: str) -> Images:
        """Return the images of a part by its name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[part]

    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        seed: int | None = None,
        limit: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> Batches:
        """See `Dataset.batches`."""
        images = self.images(part)
        if limit is not None and limit < len(images):
            images = images.take(stratified_sample(images.labels, limit, seed=0))
        return Batches(
            images,
            mean=self.mean,
            std=self.std,
            batch_size=batch_size,
            seed=seed,
            augment=self.augment and seed is not None,
            memory_format=memory_format,
        )
