"""Sounds to test with: speech-like clips, tones and noises."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.data.clips import Clips

SECOND = 16_000


def tones(amplitude: float = 0.9) -> Tensor:
    """Pure tones from the lowest mel bin to the highest, (6, S)."""
    seconds = torch.arange(SECOND) / SECOND
    return amplitude * torch.sin(2 * math.pi * torch.tensor([50.0, 100, 333.3, 1000, 4000, 7900])[:, None] * seconds)


def hiss(count: int, seed: int = 0, level: float = 0.1) -> Tensor:
    """White noise, (count, S)."""
    return level * torch.randn(count, SECOND, generator=torch.Generator().manual_seed(seed))


def rumble(count: int) -> Tensor:
    """Noise as of rooms, loudest at low frequencies, (count, S)."""
    return hiss(count, level=1.0).cumsum(1) / 1000


def speech_like(count: int, seed: int = 0) -> Tensor:
    """Harmonics of a gliding pitch that swell and fade between silences, (count, S)."""
    generator = torch.Generator().manual_seed(seed)
    seconds = torch.arange(SECOND) / SECOND
    pitch = 90 + 150 * torch.rand(count, 1, generator=generator)
    phase = 2 * math.pi * (pitch * seconds + 20 * seconds.square())
    voice = sum(torch.sin(n * phase) / n for n in range(1, 20))
    envelope = (1 - ((seconds - 0.5) / 0.3).square()).clamp(min=0)
    return 0.2 * envelope * voice + hiss(count, seed, level=1e-3)


def to_pcm(waveforms: Tensor) -> NDArray[np.int16]:
    return (waveforms * 32768).round().clamp(-32768, 32767).numpy().astype(np.int16)


def clips(count: int, num_samples: int = 4_000, seed: int = 0) -> Clips:
    """Speech-like clips whose label is their index."""
    samples = to_pcm(speech_like(count, seed)[:, SECOND // 2 - num_samples // 2 :][:, :num_samples])
    names = tuple(f"word/{index}.wav" for index in range(count))
    return Clips(samples, torch.arange(count), max(count, 2), names)
