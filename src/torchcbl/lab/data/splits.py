"""A data set from what may be fitted to and what may not: a validation part held out, the rest normalised."""

from __future__ import annotations

from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.images import Images, channel_statistics
from torchcbl.lab.data.strata import stratified_split


def split_dataset(
    full: Images,
    test: Images,
    *,
    validation_size: int,
    split_seed: int = 0,
    classes: tuple[str, ...] = (),
    augment: bool = False,
) -> ImageDataset:
    """Take a stratified validation part out of `full`; normalise by what remains.

    Args:
        full: The images that may be fitted to.
        test: The images that may not.
        validation_size: Images to hold out for validation.
        split_seed: Which split, >= 0.
        classes: Their names.
        augment: Whether training batches are cropped and mirrored at random.

    Returns:
        The data set; its mean and std are those of the training part alone.

    Raises:
        ValueError: `validation_size` does not fit (see `stratified_split`), or a channel is constant.

    Example:
        >>> import torch
        >>> pixels = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
        >>> full = Images(pixels, torch.tensor([0, 0, 0, 1, 1, 1]), num_classes=2)
        >>> len(split_dataset(full, full, validation_size=2).train)
        4
    """
    train_indices, validation_indices = stratified_split(full.labels, validation_size, split_seed)
    train = full.take(train_indices)
    mean, std = channel_statistics(train.images)
    return ImageDataset(train, full.take(validation_indices), test, mean, std, classes, augment)
