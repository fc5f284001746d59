"""Parts for users' own folders: those the folder has, else stratified ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

from torch import Tensor

from torchcbl.lab.data.class_folders import FolderParts
from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.images import channel_statistics
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.strata import stratified_split

if TYPE_CHECKING:
    from torchcbl.lab.recipe import Recipe

TENTH = 10
_VALIDATION_SEED, _TEST_SEED = 0, 1


class Samples(Protocol):
    """Labelled samples, as `Images` and `Clips` are."""

    @property
    def labels(self) -> Tensor:
        """Classes, (N,)."""

    def __len__(self) -> int:
        """N."""

    def take(self: S, indices: Tensor) -> S:
        """Copy some of them."""


S = TypeVar("S", bound=Samples)


def three_parts(parts: FolderParts[S], size: int) -> tuple[S, S, S]:  # type: ignore[type-var]
    """Complete a folder's parts: what it lacks is taken out of its training part, stratified by class.

    Which samples these are depends on the folder alone, so all runs share them.

    Args:
        parts: The folder's own.
        size: Samples of the validation part, and of the test part, where they are taken; 0 takes a tenth.

    Returns:
        Train, validation and test.

    Raises:
        ValueError: A class has too few samples to be in every part.
    """
    train, validation, test = parts.train, parts.validation, parts.test
    number = size if size else max(len(parts.classes), len(train) // TENTH)
    if test is None:
        rest, held = stratified_split(train.labels, number, _TEST_SEED)
        train, test = train.take(rest), train.take(held)
    if validation is None:
        rest, held = stratified_split(train.labels, number, _VALIDATION_SEED)
        train, validation = train.take(rest), train.take(held)
    return train, validation, test


def load_own_images(recipe: Recipe, folder: Path | None, progress: Progress = silent) -> ImageDataset:
    """Load a folder of images by class; see `load_image_folder`.

    Raises:
        ValueError: A file is damaged, the folder is laid out otherwise, or a class has too few images.
        FileNotFoundError: No folder is named, or it is not there.
    """
    from torchcbl.lab.data.folders import load_image_folder

    place = named(folder, "images")
    parts = load_image_folder(place, size=recipe.image_size, damaged=recipe.damaged, progress=progress)
    train, validation, test = three_parts(parts, recipe.validation_size)
    mean, std = channel_statistics(train.images)
    return ImageDataset(train, validation, test, mean, std, parts.classes, recipe.augment)


def named(folder: Path | None, kind: str) -> Path:
    """Return the folder of one's own that was named.

    Raises:
        FileNotFoundError: None was.
    """
    if folder is None:
        raise FileNotFoundError(f"data of your own need their folder: --data {kind}:DIR, with one folder per class.")
    return folder
