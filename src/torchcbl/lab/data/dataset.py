"""What every data set is to the laboratory: three parts, a form, and batches."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.files import write_atomically

PARTS = ("train", "validation", "test")


class EpochBatches(Protocol):
    """Batches of one part; a Trainer takes it for a dataloader."""

    def __len__(self) -> int:
        """How many there are in an epoch."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through them: x (B, C, H, W) float32, labels (B,) int64."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order and augmentation come next."""

    def take_share(self, share: int, num_shares: int) -> None:
        """Keep of every batch only one process's part."""


@dataclass(frozen=True)
class Form:
    """What a network takes and gives.

    Args:
        shape: (C, H, W) of a sample.
        classes: Their names; K of them.

    Example:
        >>> Form((1, 8, 8), ("no", "yes")).num_classes
        2
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    def save(self, folder: Path) -> None:
        """Write it as `form.json`."""
        text = json.dumps({"shape": list(self.shape), "classes": list(self.classes)}, ensure_ascii=False)
        write_atomically(folder / "form.json", text + "\n")

    @classmethod
    def load(cls, folder: Path) -> Form | None:
        """Read `form.json`; None where there is none, as in runs of earlier versions.

        Raises:
            ValueError: It is damaged.
        """
        path = folder / "form.json"
        if not path.is_file():
            return None
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            channels, height, width = (int(size) for size in values["shape"])
            return cls((channels, height, width), tuple(str(name) for name in values["classes"]))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete the run's record and repeat it.") from error


class Dataset(ABC):
    """Hold the three parts of a data set, and cut them into batches."""

    @property
    @abstractmethod
    def form(self) -> Form:
        """What a network takes and gives."""

    @abstractmethod
    def size(self, part: str) -> int:
        """Say how many samples "train", "validation" or "test" has."""

    @abstractmethod
    def raw(self, part: str) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
        """Return the samples (N, ...) of a part as they were loaded, and their classes (N,)."""

    @abstractmethod
    def batches(
        self,
        part: str,
        batch_size: int,
        *,
        seed: int | None = None,
        limit: int | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> EpochBatches:
        """Cut a part into batches.

        Args:
            part: "train", "validation" or "test".
            batch_size: Samples in a batch, at least 1.
            seed: Shuffles and augments, as training wants it; None keeps order and samples as they are.
            limit: Only so many samples, each class by its share, always the same (data often come sorted by class);
                None, or more than there are, for all.
            memory_format: Of x.
        """

    def save_front_end(self, folder: Path) -> None:
        """Keep beside a network what leads from raw data to what it takes; nothing for most data."""
        del folder
