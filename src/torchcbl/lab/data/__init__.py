"""Data: load it, split it, cut it into batches."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

from torchcbl.lab.data.batches import Batches
from torchcbl.lab.data.cifar10 import load_cifar10
from torchcbl.lab.data.dataset import Dataset, EpochBatches, Form
from torchcbl.lab.data.digits import load_digits
from torchcbl.lab.data.download import DownloadError
from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.images import Images
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.splits import split_dataset
from torchcbl.lab.sources import SOURCES

if TYPE_CHECKING:
    from torchcbl.lab.recipe import Recipe

__all__ = [
    "DATASETS",
    "Batches",
    "Dataset",
    "DownloadError",
    "EpochBatches",
    "Form",
    "ImageDataset",
    "Images",
    "Progress",
    "load_data",
    "load_dataset",
]

DATASETS = ("digits", "cifar10")


def load_dataset(recipe: Recipe, folder: Path | None = None, progress: Progress = silent) -> Dataset:
    """Load the data that a recipe is about, as it wants them.

    Args:
        recipe: Names the data, the size of the validation part and what is done to training samples.
        folder: Where the data are; None looks into TORCHCBL_DATA, then downloads. A folder of one's own must be given.
        progress: Called during downloads and decoding.

    Returns:
        The three parts; they depend on the recipe alone, so all arms and seeds of a study share them.

    Raises:
        ValueError: A file is damaged or of another layout, or the validation part does not fit.
        FileNotFoundError: The data are not in the folder.
        DownloadError: The data cannot be downloaded.
        ImportError: Sound is asked for without the extra that reads it.
    """
    if SOURCES[recipe.data].noun == "clip":
        from torchcbl.lab.sound.dataset import load_sound

        return load_sound(recipe, folder, progress)
    if recipe.data == "images":
        from torchcbl.lab.data.own import load_own_images

        return load_own_images(recipe, folder, progress)
    return load_data(
        recipe.data,
        folder=folder,
        validation_size=recipe.validation_size,
        augment=recipe.augment,
        progress=progress,
    )


def load_data(
    name: str,
    *,
    folder: Path | None = None,
    validation_size: int,
    split_seed: int = 0,
    augment: bool = False,
    progress: Progress = silent,
) -> ImageDataset:
    """Load a data set of images by name and hold out a stratified validation part.

    The split depends on `split_seed` alone, so all arms and all training seeds of a study share it.

    Args:
        name: "digits" (comes with scikit-learn) or "cifar10" (a folder, or downloaded; see `load_cifar10`).
        folder: Where CIFAR-10 is; None looks into TORCHCBL_DATA, then downloads. Not used by "digits".
        validation_size: Images to hold out, stratified: 5,000 of CIFAR-10's 50,000 take 500 of each class. 0: a tenth.
        split_seed: Which split, >= 0.
        augment: Whether training batches are cropped and mirrored at random.
        progress: Called during downloads and decoding.

    Returns:
        Train, validation and test images with the training part's channel mean and std.

    Raises:
        ValueError: The name is unknown, `validation_size` does not fit, or a file is damaged or of another
            layout.
        FileNotFoundError: `folder` (or TORCHCBL_DATA) holds no CIFAR-10.
        DownloadError: The data cannot be downloaded.

    Example:
        >>> data = load_data("digits", validation_size=200)
        >>> len(data.train), len(data.validation), len(data.test)
        (1200, 200, 397)
    """
    if name == "digits":
        full, test = load_digits()
    elif name == "cifar10":
        full, test = load_cifar10(folder, progress=progress)
    else:
        close = difflib.get_close_matches(name.lower(), DATASETS, n=1)
        hint = f": did you mean '{close[0]}'?" if close else "."
        raise ValueError(f"unknown data '{name}'{hint} There are {', '.join(DATASETS)}")
    classes = SOURCES[name].classes
    size = validation_size or len(full) // 10
    return split_dataset(full, test, validation_size=size, split_seed=split_seed, classes=classes, augment=augment)
