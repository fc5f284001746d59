"""Sound files to 16-bit samples: one channel, one rate, one length."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
FULL_SCALE = 32_768
UNKNOWN_SIZE = 0xFFFFFFFF  # what a program writes that did not know how long its stream would be


class DamagedSound(ValueError):  # noqa: N818 - it says what was found
    """A file holds no sound that can be decoded whole; the message says why, not which file."""


def read_sound(source: Path | bytes, *, sample_rate: int = SAMPLE_RATE) -> NDArray[np.int16]:
    """Decode a sound file to one channel of 16-bit samples.

    libsndfile decodes (wav, flac and more). 16-bit mono files of the right rate come out bit by bit; other depths
    are rounded to 16 bits, channels are averaged, and other rates go through libsoxr's band-limited resampler at its
    default, high quality. soxr is used and not `scipy.signal.resample_poly`, because its filter is designed for
    sound (pass band to 0.91 of the lower Nyquist frequency, 120 dB down above it), whatever the two rates.

    Args:
        source: A file, or what stands in one.
        sample_rate: Samples per second of the answer, > 0.

    Returns:
        int16, shape (S,), S >= 1.

    Raises:
        DamagedSound: The file cannot be read, is no sound file, was cut short, or holds no samples.
        ImportError: soundfile or soxr is not installed.

    Example:
        >>> import soundfile
        >>> stream = io.BytesIO()
        >>> stereo = np.array([[100, 300], [-100, -300]], np.int16)
        >>> soundfile.write(stream, stereo, 16_000, format="WAV")
        >>> read_sound(stream.getvalue()).tolist()
        [200, -200]
    """
    content = _content(source)
    _check_whole_wav(content)
    samples, rate = _decode(content)
    if rate != sample_rate:
        samples = require("soxr").resample(samples, rate, sample_rate)
    if len(samples) == 0:
        raise DamagedSound("it holds no samples")
    levels = np.rint(samples * FULL_SCALE)
    return np.clip(levels, -FULL_SCALE, FULL_SCALE - 1).astype(np.int16)


def fit_length(samples: NDArray[np.int16], num_samples: int) -> NDArray[np.int16]:
    """Crop the end of `samples` off, or pad it with silence.

    Args:
        samples: Shape (S,).
        num_samples: The length of the answer.

    Returns:
        Shape (num_samples,).

    Example:
        >>> short = np.array([1, 2, 3], np.int16)
        >>> fit_length(short, 2).tolist(), fit_length(short, 5).tolist()
        ([1, 2], [1, 2, 3, 0, 0])
    """
    missing = max(0, num_samples - len(samples))
    return np.pad(samples[:num_samples], (0, missing))


def require(name: str) -> ModuleType:
    """Import one of the optional sound libraries, or say how to install it."""
    try:
        return __import__(name)
    except (ImportError, OSError) as error:  # OSError: soundfile is there, libsndfile is not
        raise ImportError(f"reading sound needs {name} ({error}): run pip install 'torchcbl[audio]'") from error


def _content(source: Path | bytes) -> bytes:
    if isinstance(source, bytes):
        return source
    try:
        return source.read_bytes()
    except OSError as error:
        raise DamagedSound(f"it cannot be read: {error.strerror or error}") from error


def _decode(content: bytes) -> tuple[NDArray[np.float64], int]:
    """Decode to one channel in [-1, 1) and its rate; 16-bit samples are exact in float64."""
    soundfile = require("soundfile")
    try:
        with soundfile.SoundFile(io.BytesIO(content)) as file:
            expected, rate = file.frames, file.samplerate
            channels = file.read(dtype="float64", always_2d=True)
    except MemoryError as error:  # it allocates what a damaged header states
        raise DamagedSound(f"it states more samples than memory can hold, {expected:,}") from error
    except (soundfile.SoundFileError, ValueError) as error:
        raise DamagedSound(f"it is no sound that can be decoded: {error}") from error
    if len(channels) < expected:
        raise DamagedSound(f"it was cut short: {len(channels):,} of {expected:,} samples can be read")
    if not np.isfinite(channels).all():
        raise DamagedSound("it holds samples that are not numbers")
    return channels.mean(1), rate


def _check_whole_wav(content: bytes) -> None:
    """Compare the length a wav file states with what is there: libsndfile reads a shortened one without a word."""
    if content[:4] != b"RIFF" or content[8:12] != b"WAVE":
        return
    position = 12
    while position + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, position)
        position += 8
        if kind == b"data" and size != UNKNOWN_SIZE and position + size > len(content):
            raise DamagedSound(f"it was cut short: {len(content) - position:,} of {size:,} bytes of sound are there")
        position += size + size % 2
