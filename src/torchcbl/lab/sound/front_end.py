"""The front end: waveforms to normalised log-mel spectrograms, the same module in training and in deployment."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchcbl.lab.sound.mel import MelSettings, mel_filters

CHUNK = 256  # clips at a time where all of a data set's features are gone through


def from_pcm(samples: NDArray[np.int16]) -> Tensor:
    """Turn 16-bit samples into float32 in [-1, 1): x = samples / 32768.

    Raises:
        TypeError: `samples` is not int16.

    Example:
        >>> from_pcm(np.array([[-32768, 0, 16384]], dtype=np.int16))
        tensor([[-1.0000,  0.0000,  0.5000]])
    """
    if samples.dtype != np.int16:
        raise TypeError(f"samples must be int16, got {samples.dtype}: floats in [-1, 1] need no conversion")
    return torch.from_numpy(samples.astype(np.float32)) / 32768


class MelFrontEnd(nn.Module):
    """Map waveforms to log-mel spectrograms, normalised per bin.

        log_mel[b, t] = log(sum_f filters[b, f] |STFT[f, t]|^2 + floor),   x = (log_mel - mean) / std

    The windows (Hann, periodic) are centred on every `hop`-th sample, zeros standing outside the clip; the filters are
    Slaney's triangles of equal area. This is `log(librosa.feature.melspectrogram(y=y, sr=sample_rate, n_fft=window,
    hop_length=hop, n_mels=bins) + floor)`, to 1e-4.

    A clip's spectrogram does not depend on the batch it comes in. The Fourier transform is computed in float64: in
    float32 its rounding alone moves the quiet bins beside a loud tone by 7e-4. The buffers `window`, `filters`
    (bins, frequencies), `mean` and `std` (bins,) therefore keep their dtypes under `.half()` and the like, and autocast
    has no say.

    Args:
        sample_rate: Samples per second of the waveforms.
        window: Samples in a window, which is also the length of its Fourier transform: 400 are 25 ms.
        hop: Samples from one window to the next: 160 are 10 ms.
        bins: Mel bins, from 0 Hz to half the sample rate.
        floor: Added to the mel power before the logarithm.
        filters: The filter bank, float32, (bins, window // 2 + 1), where one was saved; None makes it.

    Raises:
        TypeError: A setting is no number.
        ValueError: A setting is out of range, there are too many bins for the window, or `filters` does not fit.
        ImportError: The filter bank is to be made and transformers is not installed.

    Example:
        >>> front_end = MelFrontEnd()
        >>> front_end(torch.zeros(2, 16_000)).shape
        torch.Size([2, 1, 64, 101])
    """

    window: Tensor
    filters: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        sample_rate: int = 16_000,
        window: int = 400,
        hop: int = 160,
        bins: int = 64,
        floor: float = 1e-6,
        *,
        filters: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.settings = MelSettings(sample_rate, window, hop, bins, floor)
        bank = mel_filters(self.settings) if filters is None else filters
        if bank.shape != self.settings.filters_shape or bank.dtype != torch.float32:
            raise ValueError(
                f"filters must be float32 of shape {self.settings.filters_shape} (bins, window // 2 + 1), "
                f"got {bank.dtype} of {tuple(bank.shape)}"
            )
        self.register_buffer("window", torch.hann_window(window, dtype=torch.float64))
        self.register_buffer("filters", bank)
        self.register_buffer("mean", torch.zeros(bins))
        self.register_buffer("std", torch.ones(bins))

    def log_mel(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel spectrograms, not normalised.

        Args:
            waveforms: In [-1, 1], floating point, (B, S) with S >= 1.

        Returns:
            log(mel power + floor), float32, (B, bins, frames), with frames = 1 + S // hop.

        Raises:
            TypeError: `waveforms` is not floating point.
            ValueError: `waveforms` is not (B, S).

        Example:
            >>> MelFrontEnd().log_mel(torch.zeros(1, 320)).exp().round(decimals=8).unique()
            tensor([1.0000e-06])
        """
        if not waveforms.is_floating_point():
            raise TypeError(
                f"waveforms must be floats in [-1, 1], got {waveforms.dtype}: see from_pcm for 16-bit samples"
            )
        if waveforms.ndim != 2:
            raise ValueError(f"waveforms must be (B, S), got {tuple(waveforms.shape)}: use x[None] for a single clip")
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self._power(waveforms.double()).float()
            return torch.log(self.filters @ power + self.settings.floor)

    def normalise(self, features: Tensor) -> Tensor:
        """Bring log-mel spectrograms (B, bins, frames) to (log_mel - mean) / std per bin, (B, 1, bins, frames)."""
        return ((features - self.mean[:, None]) / self.std[:, None]).unsqueeze(1)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (B, S) in [-1, 1] to normalised log-mel spectrograms (B, 1, bins, frames), float32."""
        return self.normalise(self.log_mel(waveforms))

    def fit(self, features: Tensor | NDArray[np.float32]) -> None:
        """Take mean and std per bin, over clips and frames, from the training part's features and nothing else.

        Args:
            features: log-mel spectrograms as of `log_mel`, (N, bins, frames); may be memory-mapped, since they are
                gone through in chunks. The sums are in float64; std has the divisor N times frames.

        Raises:
            ValueError: The shape does not fit, a value is not finite, or a bin is constant.

        Example:
            >>> front_end = MelFrontEnd()
            >>> front_end.fit(torch.randn(3, 64, 101) * 2 + 5)
            >>> bool((front_end.mean - 5).abs().max() < 1), bool((front_end.std - 2).abs().max() < 1)
            (True, True)
        """
        if features.ndim != 3 or features.shape[1] != self.settings.bins or 0 in features.shape:
            raise ValueError(f"features must be (N, {self.settings.bins}, frames), got {tuple(features.shape)}")
        mean, std = _moments(features)
        if not bool(torch.isfinite(mean + std).all()):
            raise ValueError("features hold NaN or infinity: look for such samples in the training waveforms")
        if not bool((std > 0).all()):
            constant = (std == 0).nonzero().flatten().tolist()
            raise ValueError(f"mel bins {constant} are constant in the training features: they cannot be normalised")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def _power(self, waveforms: Tensor) -> Tensor:
        """Compute |STFT|^2, (B, window // 2 + 1, frames)."""
        spectrum = torch.stft(
            waveforms,
            self.settings.window,
            self.settings.hop,
            window=self.window,
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        return spectrum.real.square() + spectrum.imag.square()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> MelFrontEnd:
        """Move the buffers, but keep their dtypes and with them what was saved."""
        kept = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in kept.items():
            moved = self._buffers[name]
            if buffer is not None and moved is not None and moved.dtype != buffer.dtype:
                self._buffers[name] = buffer.to(moved.device)
        return self


def _moments(features: Tensor | NDArray[np.float32]) -> tuple[Tensor, Tensor]:
    """Mean and std per bin, float64; the sums are taken around the first frame, so a constant bin has std 0."""
    pivot = _float64(features[0, :, :1])
    total = torch.zeros(features.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for start in range(0, len(features), CHUNK):
        distance = _float64(features[start : start + CHUNK]) - pivot
        total += distance.sum((0, 2))
        squares += distance.square().sum((0, 2))
    count = len(features) * features.shape[2]
    mean = total / count
    return mean + pivot[:, 0], (squares / count - mean.square()).clamp(min=0).sqrt()


def _float64(features: Tensor | NDArray[np.float32]) -> Tensor:
    if isinstance(features, Tensor):
        return features.detach().cpu().double()
    return torch.from_numpy(features.astype(np.float64))
