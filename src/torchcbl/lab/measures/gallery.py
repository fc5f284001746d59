"""Disturbed images, made once for all runs of a study and kept in the cache folder."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.files import write_atomically
from torchcbl.lab.data import ImageDataset
from torchcbl.lab.data.cache import DIGEST_SIZE, cache_folder, one_at_a_time, sha256_of
from torchcbl.lab.data.strata import stratified_sample
from torchcbl.lab.measures.disturb.catalogue import VERSION

Raw = NDArray[np.uint8]
_CHUNK = 250


@dataclass(frozen=True, eq=False)
class Gallery:
    """Choose images of the test part, and keep what is made of them.

    Args:
        pixels: The chosen images, (N, H, W, C).
        labels: Their classes (N,).
        indices: Their places in the test part, (N,), ascending.
        key: Of these images; names their folder in the cache.
    """

    pixels: Raw
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]
    key: str

    @property
    def folder(self) -> Path:
        """Where what is made of them is kept."""
        return cache_folder() / "disturbed" / self.key

    def show(self, name: str, make: Callable[[slice], Raw]) -> Raw:
        """Return the disturbed images (N, H, W, C) of a name, from the cache where they have been made before.

        Args:
            name: Of the disturbance and its grade.
            make: Makes some of them, (M, H, W, C).

        Warns:
            UserWarning: The cache cannot be written; the images are returned all the same.
        """
        path = self.folder / f"{name}.images"
        with one_at_a_time(path):
            found = _read(path)
            if found is None or found.shape != self.pixels.shape:
                parts = [make(slice(start, start + _CHUNK)) for start in range(0, len(self.pixels), _CHUNK)]
                found = np.concatenate(parts)
                _write(path, found)
        return found


def choose(dataset: ImageDataset, samples: int) -> Gallery:
    """Choose test images, the same in every study of the same data: stratified by class, seed 0; or all of them.

    Args:
        dataset: The data.
        samples: How many, each class by its share; all of them where there are no more.
    """
    part = dataset.test
    indices = torch.arange(len(part))
    if samples < len(part):
        indices = stratified_sample(part.labels, samples, seed=0)
    pixels = np.ascontiguousarray(part.images[indices].permute(0, 2, 3, 1).numpy())
    digest = hashlib.sha256(f"{VERSION}/{PIL.__version__}/{pixels.shape}".encode())
    for array in (pixels, indices.numpy()):
        digest.update(array.tobytes())
    return Gallery(pixels, part.labels[indices].numpy(), indices.numpy(), digest.hexdigest()[:16])


def as_images(raw: Raw) -> Tensor:
    """Turn (N, H, W, C) into what a data set holds, (N, C, H, W)."""
    return torch.from_numpy(raw).permute(0, 3, 1, 2)


def _read(path: Path) -> Raw | None:
    """Read a file of the cache: its SHA-256, then a .npy; None where there is none, or it is damaged."""
    try:
        with path.open("rb") as stream:
            digest = stream.read(DIGEST_SIZE)
            if sha256_of(stream).encode() != digest:
                return None
            stream.seek(DIGEST_SIZE)
            return np.asarray(np.load(stream), dtype=np.uint8)
    except (OSError, ValueError):
        return None


def _write(path: Path, images: Raw) -> None:
    buffer = io.BytesIO()
    buffer.seek(DIGEST_SIZE)
    np.save(buffer, images)
    buffer.seek(DIGEST_SIZE)
    digest = sha256_of(buffer).encode()
    buffer.seek(0)
    buffer.write(digest)
    try:
        write_atomically(path, buffer.getvalue())
    except OSError as error:
        warnings.warn(
            f"disturbed images could not be kept in {path.parent} ({error.strerror}), so every run makes them anew: "
            "set TORCHCBL_CACHE to a folder with space to spare",
            stacklevel=3,
        )
