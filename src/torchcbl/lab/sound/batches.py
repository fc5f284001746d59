"""Whole batches of spectrograms: shuffled, mixed with noise, normalised and masked without a loop over clips."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.data.batches import ByEpoch, epoch_generator
from torchcbl.lab.sound.features import check_rate, num_frames
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.masking import draw_masks, mask
from torchcbl.lab.sound.noise import NoiseMixer

if TYPE_CHECKING:
    from torchcbl.lab.data.clips import Clips


class SoundBatches(ByEpoch):
    """Iterate over one epoch of (spectrograms, labels); hand it to a Trainer as its dataloader.

    x = (log_mel - mean) / std per bin, float32, (B, 1, bins, frames); labels int64, (B,). The last batch may be short.

    With a `seed` (training) order, masks and noise of epoch e are drawn from (seed, e) alone: a run resumed at e needs
    no saved generator, and neither `masking` nor `noise` changes the order, which is that of `Batches`. Without one
    (validation, test) the clips come in their own order, untouched.

    Call `set_epoch(e)` before each epoch (in `on_train_epoch_start`). The epoch is read when the first batch
    is asked for, not by `iter()`, because Lightning makes the iterator before it starts a resumed epoch.

    Args:
        clips: What to cut into batches.
        features: Their log-mel spectrograms, (N, bins, frames), as of `features_on_disk`. With `noise` they are not
            read: the spectrograms are computed from the noisy waveforms.
        front_end: Fitted to the training part; on the CPU.
        batch_size: Clips in a batch, at least 1.
        seed: Shuffle with this seed, >= 0; None keeps the order.
        masking: Hide two stretches of time and two bands of frequency of each clip (see `mask`); only with a `seed`.
        noise: Mix noise into a share of the clips; only with a `seed`.
        memory_format: Of the spectrograms: torch.contiguous_format, or torch.channels_last.

    Raises:
        ValueError: `batch_size` or `seed` is out of range, `masking` or `noise` comes without `seed`, or the features
            or the front end do not fit the clips.

    Example:
        >>> from torchcbl.lab.data.clips import Clips
        >>> samples = np.random.default_rng(0).integers(-99, 99, (5, 1600)).astype(np.int16)
        >>> clips = Clips(samples, torch.arange(5), num_classes=5, names=tuple("abcde"))
        >>> front_end = MelFrontEnd()
        >>> features = front_end.log_mel(from_pcm(samples)).numpy()
        >>> front_end.fit(features)
        >>> [(tuple(x.shape), labels.tolist()) for x, labels in SoundBatches(clips, features, front_end, batch_size=3)]
        [((3, 1, 64, 11), [0, 1, 2]), ((2, 1, 64, 11), [3, 4])]
    """

    def __init__(
        self,
        clips: Clips,
        features: NDArray[np.float32],
        front_end: MelFrontEnd,
        *,
        batch_size: int,
        seed: int | None = None,
        masking: bool = False,
        noise: NoiseMixer | None = None,
        memory_format: torch.memory_format = torch.contiguous_format,
    ) -> None:
        check_rate(clips, front_end)
        expected = (len(clips), front_end.settings.bins, num_frames(clips, front_end))
        if features.shape != expected:
            raise ValueError(f"features of these clips must be {expected}, got {features.shape}: see features_on_disk")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if seed is not None and seed < 0:
            raise ValueError(f"seed must be 0 or more, or None to keep the order, got {seed}")
        if seed is None and (masking or noise is not None):
            option = "masking=True" if masking else "noise"
            raise ValueError(f"{option} needs a seed: clips that are evaluated are never augmented")
        self.batch_size, self.seed, self.masking, self.noise = batch_size, seed, masking, noise
        self.memory_format = memory_format
        self._clips, self._features, self._front_end = clips, features, front_end

    def __len__(self) -> int:
        return -(-len(self._clips) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        epoch = self.epoch
        order, masks = self._draw(epoch)
        for chosen in self.slices(len(self._clips), self.batch_size):
            indices = order[chosen]
            with torch.no_grad():
                x = self._front_end.normalise(self._log_mel(indices, epoch))
                x = mask(x, masks[chosen]) if self.masking else x
            yield x.contiguous(memory_format=self.memory_format), self._clips.labels[indices]

    def _draw(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Order and masks of the epoch; row i of the masks belongs to the i-th clip of the epoch."""
        count = len(self._clips)
        if self.seed is None:
            return torch.arange(count), torch.empty(0)
        generator = epoch_generator(self.seed, epoch)
        return torch.randperm(count, generator=generator), draw_masks(count, generator)

    def _log_mel(self, indices: Tensor, epoch: int) -> Tensor:
        if self.noise is None:
            return torch.from_numpy(self._features[indices.numpy()])
        assert self.seed is not None
        waveforms = from_pcm(self._clips.waveforms[indices.numpy()])
        # The epoch first: a seed of more than 32 bits takes two of the words that are hashed, and (1, 1 + 2**32) must
        # not be read as another pair.
        return self._front_end.log_mel(self.noise.mix(waveforms, indices, (epoch, self.seed)))
