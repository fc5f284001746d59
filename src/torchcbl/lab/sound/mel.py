"""What decides a log-mel spectrogram: settings, and the filter bank that follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchcbl.checks import check_above_zero, check_count


@dataclass(frozen=True)
class MelSettings:
    """Hold what decides a log-mel spectrogram.

    Args:
        sample_rate: Samples per second of the waveforms.
        window: Samples in a window, which is also the length of its Fourier transform; at least 2.
        hop: Samples from one window to the next.
        bins: Mel bins, from 0 Hz to half the sample rate.
        floor: Added to the mel power before the logarithm; positive.

    Raises:
        TypeError: A setting is no number.
        ValueError: A setting is out of range.
    """

    sample_rate: int = 16_000
    window: int = 400
    hop: int = 160
    bins: int = 64
    floor: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("sample_rate", "window", "hop", "bins"):
            check_count("MelFrontEnd", name, getattr(self, name))
        check_above_zero("MelFrontEnd", "floor", self.floor)
        if self.window < 2:
            raise ValueError(f"MelFrontEnd's window must be at least 2 samples, got {self.window}")

    @property
    def filters_shape(self) -> tuple[int, int]:
        """(bins, frequencies) of the filter bank."""
        return self.bins, self.window // 2 + 1


def mel_filters(settings: MelSettings) -> Tensor:
    """Make the filter bank: Slaney's mel scale and norm, from 0 Hz to half the sample rate.

    It is transformers': librosa's without librosa's 424 MB, while torchaudio does not load beside every torch.

    Returns:
        Float32, (bins, window // 2 + 1).

    Raises:
        ImportError: transformers is not installed.
        ValueError: There are so many bins that some would hold no frequency of the Fourier transform.
    """
    try:
        from transformers.audio_utils import mel_filter_bank
    except ImportError as error:
        raise ImportError(
            "making a mel filter bank needs transformers, which is not installed: pip install 'torchcbl[audio]'"
        ) from error
    bins, frequencies = settings.filters_shape
    bank = mel_filter_bank(
        num_frequency_bins=frequencies,
        num_mel_filters=bins,
        min_frequency=0.0,
        max_frequency=settings.sample_rate / 2,
        sampling_rate=settings.sample_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    filters = torch.from_numpy(np.ascontiguousarray(bank.T, dtype=np.float32))
    if not bool((filters.sum(1) > 0).all()):
        raise ValueError(
            f"{bins} bins are too many for a window of {settings.window} samples: some hold none of its "
            f"{frequencies} frequencies; take fewer bins or a longer window"
        )
    return filters
