"""Labelled sound of one length, in memory or in a memory-mapped file."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Clips:
    """Hold labelled sounds of one length as one array.

    Args:
        waveforms: Samples -32768..32767, int16, shape (N, S); may be a read-only memory map.
        labels: The class of each clip, int64, shape (N,), in 0..num_classes-1.
        num_classes: How many classes there are, K >= 2.
        names: Where each clip comes from, as 'bed/0c40e715_nohash_0.wav'; length N.
        sample_rate: Samples per second, > 0.

    Raises:
        TypeError: `waveforms` is not int16 or `labels` is not int64.
        ValueError: A shape is wrong, the lengths differ, nothing is there, or a label is out of range.

    Example:
        >>> clips = Clips(np.zeros((2, 8_000), np.int16), torch.tensor([0, 1]), 2, ("no/a.wav", "yes/b.wav"))
        >>> len(clips), clips.num_samples, clips.seconds, clips.take(torch.tensor([1])).names
        (2, 8000, 0.5, ('yes/b.wav',))
        >>> Clips(np.zeros((1, 8), np.int16), torch.tensor([2]), 2, ("no/a.wav",))
        Traceback (most recent call last):
        ...
        ValueError: label 2 of no/a.wav is outside 0..1 (num_classes=2): correct the label or raise num_classes
    """

    waveforms: NDArray[np.int16]
    labels: Tensor
    num_classes: int
    names: tuple[str, ...]
    sample_rate: int = 16_000

    def __post_init__(self) -> None:
        self._check_types()
        self._check_shapes()
        self._check_numbers()

    def _check_types(self) -> None:
        if not isinstance(self.waveforms, np.ndarray) or self.waveforms.dtype != np.int16:
            got = getattr(self.waveforms, "dtype", type(self.waveforms).__name__)
            raise TypeError(f"waveforms must be a numpy array of int16, got {got}: read files with read_sound")
        if self.labels.dtype != torch.int64:
            raise TypeError(f"labels must be torch.int64, got {self.labels.dtype}: convert with .to(torch.int64)")

    def _check_shapes(self) -> None:
        if self.waveforms.ndim != 2 or self.labels.ndim != 1:
            shapes = f"{self.waveforms.shape} and {tuple(self.labels.shape)}"
            raise ValueError(f"waveforms must be (N, S) and labels (N,), got {shapes}")
        lengths = len(self.waveforms), len(self.labels), len(self.names)
        if len(set(lengths)) > 1 or self.waveforms.size == 0:
            raise ValueError(
                "got {} clips, {} labels and {} names: give one label and one name per clip, and at least one "
                "clip of at least one sample".format(*lengths)
            )

    def _check_numbers(self) -> None:
        if self.num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {self.num_classes}: one class is nothing to tell")
        if self.sample_rate < 1:
            raise ValueError(f"sample_rate must be positive, got {self.sample_rate}: give samples per second")
        outside = (self.labels < 0) | (self.labels >= self.num_classes)
        if outside.any():
            index = int(outside.nonzero()[0, 0])
            raise ValueError(
                f"label {int(self.labels[index])} of {self.names[index]} is outside 0..{self.num_classes - 1} "
                f"(num_classes={self.num_classes}): correct the label or raise num_classes"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_samples(self) -> int:
        """S, the samples in every clip."""
        return int(self.waveforms.shape[1])

    @property
    def seconds(self) -> float:
        """S / sample_rate, the length of every clip."""
        return self.num_samples / self.sample_rate

    def take(self, indices: Tensor) -> Clips:
        """Copy the clips at `indices` (int64, shape (M,)) into memory, in that order."""
        names = tuple(self.names[index] for index in indices.tolist())
        waveforms = np.ascontiguousarray(self.waveforms[indices.numpy()])
        return Clips(waveforms, self.labels[indices], self.num_classes, names, self.sample_rate)
