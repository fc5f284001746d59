"""Which data a folder of runs is about, so that runs on different data never stand for one study."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchcbl.files import write_atomically
from torchcbl.lab.data.dataset import PARTS, Dataset

FILE = "data.json"
LOOKED_AT = 1000


def keep_identity(folder: Path, dataset: Dataset, fresh: bool) -> None:
    """Note in a study's folder which data it is about; where that is noted already, compare.

    Args:
        folder: The study's.
        dataset: Its data.
        fresh: Whether nothing has been trained there yet, so that what is noted does not count.

    Raises:
        ValueError: What is there was trained on other data.
    """
    if fresh or not (folder / FILE).is_file():
        write_atomically(folder / FILE, json.dumps(identity(dataset), indent=1, ensure_ascii=False) + "\n")
    else:
        check_identity(folder, dataset)


def check_identity(folder: Path, dataset: Dataset) -> None:
    """Compare data with what is noted in a study's folder, if anything is.

    Raises:
        ValueError: What is there was trained on other data.
    """
    path = folder / FILE
    if not path.is_file():
        return
    try:
        noted = dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, if the data are those of {folder}.") from error
    for key, found in identity(dataset).items():
        if noted.get(key) != found:
            raise ValueError(
                f"{folder} was made with other data: {key} there {noted.get(key)}, here {found}. Runs on different "
                "data cannot be compared: choose another --out, or give the --data of before."
            )


def identity(dataset: Dataset) -> dict[str, object]:
    """Say in few words what tells data from others: sizes, classes, and a digest of labels and of some samples."""
    digest = hashlib.blake2b(digest_size=16)
    for part in PARTS:
        samples, labels = dataset.raw(part)
        digest.update(labels.tobytes())
        digest.update(_some(samples).tobytes())
    sizes = {part: dataset.size(part) for part in PARTS}
    return {"sizes": sizes, "classes": list(dataset.form.classes), "digest": digest.hexdigest()}


def _some(samples: NDArray[np.generic]) -> NDArray[np.generic]:
    return samples[:: -(-len(samples) // LOOKED_AT)]
