"""CIFAR-10 from the Hugging Face hub's parquet files: found in a folder or downloaded, decoded once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from torchcbl.lab.data.cache import Arrays, cache_folder, decoded
from torchcbl.lab.data.download import download
from torchcbl.lab.data.images import Images
from torchcbl.lab.data.parquet import read_images
from torchcbl.lab.data.progress import Progress, silent

HUB = "https://huggingface.co"
DATASET = "datasets/uoft-cs/cifar10/resolve/main/plain_text"
FILES = {"train": "train-00000-of-00001.parquet", "test": "test-00000-of-00001.parquet"}
ROWS = {"train": 50_000, "test": 10_000}


def load_cifar10(
    folder: Path | None = None, *, progress: Progress = silent, rows: Mapping[str, int] = ROWS
) -> tuple[Images, Images]:
    """Load CIFAR-10 in its official order (A. Krizhevsky, 2009).

    The two files `train-00000-of-00001.parquet` and `test-00000-of-00001.parquet` are taken from `folder`,
    else from the folder TORCHCBL_DATA names, else from the cache (TORCHCBL_CACHE, else ~/.cache/torchcbl),
    into which they are downloaded. They are decoded once; the arrays are kept in the cache, never beside the
    files.

    Args:
        folder: The folder with the two files, or one above it: `<folder>/plain_text`, `<folder>/cifar10` and
            `<folder>/cifar10/plain_text` are looked into too. Where a folder is named, nothing is downloaded.
        progress: Called during download and decoding.
        rows: Images that the "train" and "test" files must hold; for excerpts in tests.

    Returns:
        The 50,000 training and 10,000 test images, (N, 3, 32, 32), ten classes.

    Raises:
        FileNotFoundError: The named folder does not hold the files.
        ValueError: A file is damaged, of another layout, or holds other rows, images or labels.
        DownloadError: The files can be neither found nor downloaded.
    """
    place = find_cifar10(folder, progress=progress)
    train, test = (_load(place / FILES[part], rows[part], progress) for part in ("train", "test"))
    return train, test


def _load(path: Path, rows: int, progress: Progress) -> Images:
    def decode() -> Arrays:
        images, labels = read_images(path, rows=rows, size=(32, 32), num_classes=10, progress=progress)
        return {"images": images, "labels": labels}

    arrays = decoded(path, decode)
    return Images(torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2), torch.from_numpy(arrays["labels"]), 10)


def find_cifar10(folder: Path | None = None, *, progress: Progress = silent) -> Path:
    """Find the folder with the two parquet files; download them where no folder is named.

    Args:
        folder: As in `load_cifar10`.
        progress: Called during a download.

    Returns:
        A folder that holds both files.

    Raises:
        FileNotFoundError: The named folder does not hold them.
        DownloadError: They can be neither found nor downloaded. TORCHCBL_HUB may name a mirror of the hub.
    """
    named = folder or os.environ.get("TORCHCBL_DATA")
    if named:
        origin = "the data folder" if folder else "TORCHCBL_DATA ="
        return _search(Path(named).expanduser(), origin)
    place = cache_folder() / "cifar10" / "plain_text"
    hub = os.environ.get("TORCHCBL_HUB") or HUB
    for file in FILES.values():
        download(f"{hub.rstrip('/')}/{DATASET}/{file}", place / file, progress=progress)
    return place


def _search(folder: Path, origin: str) -> Path:
    places = [folder, folder / "plain_text", folder / "cifar10", folder / "cifar10" / "plain_text"]
    for place in places:
        missing = [file for file in FILES.values() if not (place / file).is_file()]
        if not missing:
            return place
        if len(missing) < len(FILES):
            raise FileNotFoundError(f"{place} holds only half of CIFAR-10: add {missing[0]} to it")
    unlike = "" if folder.is_dir() else ", which is not a folder"
    raise FileNotFoundError(
        f"no CIFAR-10 in {origin} {folder}{unlike}: looked for {' and '.join(FILES.values())} in it and in "
        "its plain_text, cifar10 and cifar10/plain_text. Name the folder that holds them with --data, or "
        "leave out --data and TORCHCBL_DATA to download them"
    )
