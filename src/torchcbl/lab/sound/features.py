"""Log-mel spectrograms of a whole data set, computed once into an array on disk."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray

from torchcbl.files import finish, unfinished
from torchcbl.lab.data.cache import DIGEST_SIZE, cache_folder, one_at_a_time, sha256_of
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.sharing.fingerprint import digest

if TYPE_CHECKING:
    from torchcbl.lab.data.clips import Clips

FORMAT = 1  # part of every entry's name: raise it when the same clips and settings give other features
BATCH = 128


def features_on_disk(clips: Clips, front_end: MelFrontEnd, progress: Progress = silent) -> NDArray[np.float32]:
    """Return the log-mel spectrograms of all clips, from the cache folder where they have been computed before.

    An entry is an .npy file followed by its own SHA-256. Its name is a digest of the waveforms and of all that decides
    a log-mel spectrogram, so other clips or settings get an entry of their own; one that is damaged or cut short is
    made again. Mean and std of the front end have no part in it. Entries may be deleted at any time.

    Args:
        clips: The waveforms.
        front_end: What to compute.
        progress: Called with the number of clips that are done.

    Returns:
        log_mel of each clip, float32, (N, bins, frames), memory-mapped and read-only.

    Warns:
        UserWarning: The cache cannot be written; the array is returned all the same, from memory.

    Raises:
        ValueError: The clips have another sample rate than the front end.
    """
    check_rate(clips, front_end)
    entry = cache_folder() / "features" / f"log-mel-{_identity(clips, front_end)}.npy"
    shape = (len(clips), front_end.settings.bins, num_frames(clips, front_end))
    with one_at_a_time(entry):
        if not _is_whole(entry, shape):
            try:
                _write(entry, shape, _compute(clips, front_end, progress))
            except OSError as error:
                _warn(entry, error)
                return np.concatenate(list(_compute(clips, front_end, progress)))
    features: NDArray[np.float32] = np.load(entry, mmap_mode="r")
    return features


def check_rate(clips: Clips, front_end: MelFrontEnd) -> None:
    """Raise ValueError unless clips and front end have the same sample rate."""
    if clips.sample_rate != front_end.settings.sample_rate:
        raise ValueError(
            f"the clips have {clips.sample_rate} samples per second and the front end takes "
            f"{front_end.settings.sample_rate}: build MelFrontEnd(sample_rate={clips.sample_rate})"
        )


def num_frames(clips: Clips, front_end: MelFrontEnd) -> int:
    """Count the frames of each clip's spectrogram."""
    return 1 + clips.num_samples // front_end.settings.hop


def _identity(clips: Clips, front_end: MelFrontEnd) -> str:
    """Digest the samples, and what decides their features."""
    identity = hashlib.sha256()
    tables = [digest(front_end.window), digest(front_end.filters)]
    identity.update(json.dumps([FORMAT, clips.waveforms.shape, asdict(front_end.settings), tables]).encode())
    for start in range(0, len(clips), BATCH):
        identity.update(np.ascontiguousarray(clips.waveforms[start : start + BATCH]).data)
    return identity.hexdigest()[:24]


@torch.no_grad()
def _spectrograms(samples: NDArray[np.int16], front_end: MelFrontEnd) -> NDArray[np.float32]:
    features: NDArray[np.float32] = front_end.log_mel(from_pcm(samples).to(front_end.window.device)).cpu().numpy()
    return features


def _compute(clips: Clips, front_end: MelFrontEnd, progress: Progress) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(clips), BATCH):
        progress("computing mel spectrograms", start, len(clips))
        yield _spectrograms(clips.waveforms[start : start + BATCH], front_end)
    progress("computing mel spectrograms", len(clips), len(clips))


def _is_whole(entry: Path, shape: tuple[int, ...]) -> bool:
    """Say whether `entry` is there, holds what its checksum says and is an array of `shape`."""
    try:
        with entry.open("rb") as stream:
            size = entry.stat().st_size - DIGEST_SIZE
            content = hashlib.sha256()
            while size > 0 and (chunk := stream.read(min(1 << 20, size))):
                content.update(chunk)
                size -= len(chunk)
            if stream.read() != content.hexdigest().encode():
                return False
        return bool(np.load(entry, mmap_mode="r").shape == shape)
    except (OSError, ValueError):
        return False


def _write(entry: Path, shape: tuple[int, ...], parts: Iterator[NDArray[np.float32]]) -> None:
    """Write the array part by part, then its checksum; it takes its name when all of it is on disk."""
    with unfinished(entry) as stream:
        header = {"descr": npy.dtype_to_descr(np.dtype(np.float32)), "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(stream, header)
        for part in parts:
            stream.write(np.ascontiguousarray(part).data)
        stream.seek(0)
        checksum = sha256_of(stream)
        stream.write(checksum.encode())
        finish(stream, entry)


def _warn(entry: Path, error: OSError) -> None:
    warnings.warn(
        f"mel spectrograms could not be kept in {entry.parent} ({os.strerror(error.errno or 0)}), so they stay in "
        "memory and are computed again next time: set TORCHCBL_CACHE to a folder with 30 kB per clip to spare",
        stacklevel=3,
    )
