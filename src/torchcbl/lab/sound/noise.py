"""Background noise: mixing recordings into clips at a given signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.sound.front_end import from_pcm


def at_snr(waveforms: Tensor, noise: Tensor, snr_db: float | Tensor) -> Tensor:
    """Add noise, scaled so that the power ratio of clip to noise is `snr_db` decibels.

        x + a n   with   a^2 = mean(x^2) / (mean(n^2) 10^(snr_db / 10))

    The powers are means over the whole clip, its padding included. A silent clip (all zeros) has no such ratio and
    stays silent; where the noise is silent the clip stays as it is. The sum is not clipped, which would change the
    ratio: it may leave [-1, 1].

    Args:
        waveforms: Clips, (B, S).
        noise: One stretch of noise for each, (B, S).
        snr_db: Decibels, one number or one for each clip, (B,).

    Returns:
        The noisy clips, (B, S).

    Raises:
        ValueError: The shapes differ.

    Example:
        >>> at_snr(torch.tensor([[1.0, -1.0]]), torch.tensor([[5.0, 5.0]]), snr_db=20.0)
        tensor([[ 1.1000, -0.9000]])
    """
    if waveforms.ndim != 2 or waveforms.shape != noise.shape:
        raise ValueError(
            f"waveforms and noise must both be (B, S), got {tuple(waveforms.shape)} and {tuple(noise.shape)}"
        )
    signal_power, noise_power = (x.double().square().mean(1) for x in (waveforms, noise))
    ratio = 10 ** (torch.as_tensor(snr_db, dtype=torch.float64) / 10)
    scale = torch.where(noise_power > 0, signal_power / (noise_power * ratio), 0.0).sqrt()
    return waveforms + (scale[:, None] * noise).to(waveforms.dtype)


@dataclass(frozen=True, eq=False)
class NoiseMixer:
    """Mix recordings of noise into clips: a random recording, a random stretch of it, a random ratio.

    What is drawn for a clip depends on (seed, its index) alone, whichever batch it comes in. A recording shorter than a
    clip is repeated.

    Args:
        recordings: Noise by name, int16, each (S,), at the clips' sample rate.
        share: Of the clips to mix noise into in training, in (0, 1]; 0.8 as in the data set's reference training
            (Warden 2018, arXiv:1804.03209).
        snr_db: Lowest and highest ratio in training, in decibels, between which it is drawn uniformly.

    Raises:
        TypeError: A recording is not int16.
        ValueError: There is no recording, one is not (S,) or is silent, or `share` or `snr_db` is out of range.

    Example:
        >>> mixer = NoiseMixer({"hum": np.tile(np.array([9, -9], dtype=np.int16), 50)})
        >>> mixer.at(torch.ones(1, 4), torch.tensor([7]), snr_db=20.0).abs().sub(1).abs().sum()
        tensor(0.4000)
    """

    recordings: Mapping[str, NDArray[np.int16]]
    share: float = 0.8
    snr_db: tuple[float, float] = (0.0, 20.0)

    def __post_init__(self) -> None:
        if not self.recordings:
            raise ValueError("recordings is empty: give at least one recording of noise")
        for name, recording in self.recordings.items():
            if recording.dtype != np.int16:
                raise TypeError(f"recording '{name}' must be int16, got {recording.dtype}")
            if recording.ndim != 1 or not recording.any():
                found = f"got shape {recording.shape}" if recording.ndim != 1 else "every sample is 0"
                raise ValueError(f"recording '{name}' must be (S,) and not silent: {found}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {self.share}: for no noise, mix none")
        if not -100 <= self.snr_db[0] <= self.snr_db[1] <= 100:
            raise ValueError(f"snr_db must be (lowest, highest) decibels in -100..100, got {self.snr_db}")

    def mix(self, waveforms: Tensor, indices: Tensor, seed: int | tuple[int, ...]) -> Tensor:
        """Mix noise into `share` of the clips, each at a ratio of its own: for training.

        Args:
            waveforms: Clips, (B, S), in [-1, 1].
            indices: Which clips of the data set they are, int64, (B,).
            seed: Which noise; in training, the epoch and the run's seed.

        Returns:
            The clips, (B, S); those left out are untouched.
        """
        draws = _draws(indices, seed)
        lowest, highest = self.snr_db
        noisy = at_snr(waveforms, self._stretches(draws, waveforms.shape[1]), lowest + (highest - lowest) * draws[:, 2])
        return torch.where((draws[:, 3] < self.share)[:, None], noisy, waveforms)

    def at(self, waveforms: Tensor, indices: Tensor, snr_db: float, seed: int = 0) -> Tensor:
        """Mix noise into all clips at one ratio: for measuring robustness.

        A clip meets the same stretch of the same recording at every ratio.

        Args:
            waveforms: Clips, (B, S), in [-1, 1].
            indices: Which clips of the data set they are, int64, (B,).
            snr_db: Decibels.
            seed: Which noise.

        Returns:
            The noisy clips, (B, S).
        """
        return at_snr(waveforms, self._stretches(_draws(indices, seed), waveforms.shape[1]), snr_db)

    def split(self, at: float = 0.5) -> tuple[NoiseMixer, NoiseMixer]:
        """Cut each recording in two, so that what is trained with is not what robustness is measured with.

        Args:
            at: The first part's share of each recording, in (0, 1).

        Returns:
            A mixer of the first parts and one of the rest.

        Raises:
            ValueError: `at` is out of range, or a part would be silent.
        """
        if not 0 < at < 1:
            raise ValueError(f"a split must be at a share in (0, 1) of the recordings, got {at}")
        cuts = {name: round(at * len(recording)) for name, recording in self.recordings.items()}
        first = {name: recording[: cuts[name]] for name, recording in self.recordings.items()}
        rest = {name: recording[cuts[name] :] for name, recording in self.recordings.items()}
        return NoiseMixer(first, self.share, self.snr_db), NoiseMixer(rest, self.share, self.snr_db)

    def _stretches(self, draws: Tensor, num_samples: int) -> Tensor:
        """Cut one stretch of noise per row of `draws`, (B, num_samples)."""
        recordings = list(self.recordings.values())
        stretches = np.empty((len(draws), num_samples), np.int16)
        for stretch, (which, where) in zip(stretches, draws[:, :2].tolist(), strict=True):
            recording = recordings[int(which * len(recordings))]
            start = int(where * max(1, len(recording) - num_samples + 1))
            stretch[:] = (
                np.resize(recording, num_samples)
                if len(recording) < num_samples
                else (recording[start : start + num_samples])
            )
        return from_pcm(stretches)


def _draws(indices: Tensor, seed: int | tuple[int, ...]) -> Tensor:
    """Draw four uniform numbers per clip (recording, place, ratio, whether): row i of one stream belongs to clip i."""
    # RandomState fills row by row, so a row does not depend on how many follow, and numpy has frozen its stream.
    random = np.random.RandomState(np.random.SeedSequence(seed).generate_state(4))
    rows = random.random_sample((int(indices.max()) + 1 if len(indices) else 0, 4))
    return torch.from_numpy(rows)[indices]
