"""Which data a folder of runs is about, so that runs on different data never stand for one study."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchcbl.files import write_atomically
from torchcbl.lab.data.dataset import PARTS, Dataset

FILE = "data.json"
LOOKED_AT = 1000


def keep_identity(folder: Path, dataset: Dataset, fresh: bool, shape: str = "") -> None:
    """Note in a study's folder which data it is about; where that is noted already, compare.

    Args:
        folder: The study's.
        dataset: Its data.
        fresh: Whether nothing has been trained there yet, so that what is noted does not count.
        shape: What shaped these samples, as "image_size=16", in the folder of a sweep that holds several shapes. Each
            is noted, and so is what all have in common: sizes, classes and labels.

    Raises:
        ValueError: What is there was trained on other data, or the file is none that this function wrote.
    """
    noted = {FILE: identity(dataset, samples=not shape)}
    if shape:
        noted[f"data,{shape}.json"] = identity(dataset)
    for name, found in noted.items():
        if fresh and (folder / name).is_file():
            _check_own(folder / name, found)
        if fresh or not (folder / name).is_file():
            write_atomically(folder / name, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
        else:
            _compare(folder / name, found)


def _check_own(path: Path, found: Mapping[str, object]) -> None:
    try:
        own = dict(json.loads(path.read_bytes())).keys() == found.keys()
    except (ValueError, TypeError):
        own = False
    if not own:
        raise ValueError(f"{path} is none of torchcbl's, which would replace it: choose another --out, or move it.")


def check_identity(folder: Path, dataset: Dataset) -> None:
    """Compare data with what is noted in a study's folder, if anything is.

    Raises:
        ValueError: What is there was trained on other data.
    """
    if (folder / FILE).is_file():
        _compare(folder / FILE, identity(dataset))


def _compare(path: Path, here: Mapping[str, object]) -> None:
    folder = path.parent
    try:
        noted = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, if the data are those of {folder}.") from error
    for key, found in here.items():
        if noted.get(key) != found:
            raise ValueError(
                f"{folder} was made with other data: {key} there {noted.get(key)}, here {found}. Runs on different "
                "data cannot be compared: choose another --out, or give the --data of before."
            )


def identity(dataset: Dataset, samples: bool = True) -> dict[str, object]:
    """Say in few words what tells data from others: sizes, classes, and a digest of labels and of some samples.

    Args:
        dataset: The data.
        samples: Whether samples go into the digest, or labels alone.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        raw, labels = dataset.raw(part)
        digest.update(labels.tobytes())
        if samples:
            digest.update(_some(raw).tobytes())
    sizes = {part: dataset.size(part) for part in PARTS}
    return {"sizes": sizes, "classes": list(dataset.form.classes), "digest": digest.hexdigest()}


def _some(samples: NDArray[np.generic]) -> NDArray[np.generic]:
    return samples[:: -(-len(samples) // LOOKED_AT)]
