"""Speech Commands: spoken words of one second, found in a folder or downloaded, decoded once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.damage import check_damaged, refusal, tell_skipped
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.sound import SAMPLE_RATE, DamagedSound, read_sound
from torchcbl.lab.data.speech_folder import find_speech_commands
from torchcbl.lab.data.speech_sources import Source, list_speech_commands
from torchcbl.lab.data.speech_words import FIVE_WORDS, PARTS, WORDS_35, speaker_of, which_part
from torchcbl.lab.data.waveforms import Job, Waveforms, decoded_waveforms

__all__ = [
    "FIVE_WORDS",
    "WORDS_35",
    "SpeechCommands",
    "find_speech_commands",
    "load_speech_commands",
    "speaker_of",
    "which_part",
]


@dataclass(frozen=True, eq=False)
class SpeechCommands:
    """Hold the three official parts, in which no speaker is twice, and the background noise.

    Args:
        train: What a model is fitted to.
        validation: What is looked at after every epoch.
        test: What is looked at once, after the last epoch.
        words: The word of each class.
        noise: Long recordings without words, int16, by name; may be empty.

    Raises:
        ValueError: The parts differ in length, rate or classes, or a speaker is in two of them.
        TypeError: A noise is not an int16 array of one dimension.
    """

    train: Clips
    validation: Clips
    test: Clips
    words: tuple[str, ...]
    noise: dict[str, NDArray[np.int16]]

    def __post_init__(self) -> None:
        self._check_alike()
        self._check_speakers()
        for name, samples in self.noise.items():
            if samples.dtype != np.int16 or samples.ndim != 1:
                raise TypeError(
                    f"noise {name!r} must be int16 of shape (S,), got {samples.dtype} of shape {samples.shape}: "
                    "read files with read_sound"
                )

    def _check_alike(self) -> None:
        expected = len(self.words), self.train.num_samples, self.train.sample_rate
        for name, part in self._parts().items():
            got = part.num_classes, part.num_samples, part.sample_rate
            if got != expected:
                raise ValueError(
                    "{} has {} classes and {} samples at {} Hz, expected {}, {} and {}: all parts must be alike, with "
                    "one class per word".format(name, *got, *expected)
                )

    def _check_speakers(self) -> None:
        seen: dict[str, tuple[str, str]] = {}
        for part, clips in self._parts().items():
            for name in clips.names:
                other, example = seen.setdefault(speaker_of(name), (part, name))
                if other != part:
                    raise ValueError(
                        f"speaker {speaker_of(name)} is in {other} ({example}) and in {part} ({name}), so {part} would "
                        "not measure unknown voices: remove the lists or files that were mixed in, or fetch the data "
                        "again"
                    )

    def _parts(self) -> dict[str, Clips]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def load_speech_commands(
    folder: Path | None = None,
    *,
    words: tuple[str, ...] = WORDS_35,
    damaged: str = "refuse",
    progress: Progress = silent,
) -> SpeechCommands:
    """Load Speech Commands v0.02 in its official parts (P. Warden, 2018, arXiv:1804.03209).

    The clips are taken from `folder`, else from the folder TORCHCBL_DATA names, else from the cache (TORCHCBL_CACHE,
    else ~/.cache/torchcbl), into which the official archive is downloaded (2.4 GB) and unpacked (3.8 GB). Two layouts
    are known: the archive's `<word>/<speaker>_nohash_<n>.wav` with `validation_list.txt`, `testing_list.txt` and
    `_background_noise_/*.wav`, split by the lists, or by the published rule (`which_part`) where both are missing;
    and `train-*`, `validation-*` and `test-*.parquet` with the columns `file` and `audio`, split by the files, with
    `background_noise/*.flac` in the same folder or beside it.

    Clips become 16 kHz, one channel, one second: cropped, or padded with silence at the end. They are decoded once,
    into a memory-mapped file in the cache (32 KB a clip: 3.4 GB for all 35 words).

    Args:
        folder: The folder with the clips, or one above it: `<folder>/speech_commands`, `<folder>/five_words` and
            `<folder>/speech_commands/five_words` are looked into too; or one with `speech_commands_v0.02.tar.gz`, which
            is unpacked into the cache. Where a folder is named, nothing is downloaded.
        words: Which words, in the order of the classes; others are left out.
        damaged: What to do with a file that cannot be decoded, was cut short, or is missing though a list names it:
            "refuse" raises, "skip" leaves it out with a warning.
        progress: Called during download, unpacking and decoding.

    Returns:
        The three parts and the noise. Labels are places in `words`.

    Raises:
        FileNotFoundError: The named folder does not hold Speech Commands.
        ValueError: It lacks a word, a part or a list, a file is damaged, or a speaker is in two parts.
        DownloadError: The clips can be neither found nor downloaded.
        ImportError: soundfile or soxr is not installed.
    """
    _check_words(words)
    check_damaged(damaged)
    source = list_speech_commands(find_speech_commands(folder, words, progress=progress), words)
    job = Job(
        source.place, ",".join(sorted(words)), source.stamp, source.encoded, source.total,
        SAMPLE_RATE, damaged,
    )  # fmt: skip
    waveforms = decoded_waveforms(job, progress)
    parts = {part: _part(part, waveforms, words, source.place) for part in PARTS}
    return SpeechCommands(**parts, words=words, noise=_read_noise(source, damaged))


def _check_words(words: tuple[str, ...]) -> None:
    if len(words) < 2 or len(set(words)) < len(words):
        raise ValueError(f"words must be at least two different ones, got {words}: for example FIVE_WORDS")


def _part(part: str, waveforms: Waveforms, words: tuple[str, ...], place: Path) -> Clips:
    rows = [row for row, name in enumerate(waveforms.listing.parts) if name == part]
    if not rows:
        raise ValueError(f"{place} has no clip for {part}: fetch the data again, or name another folder with --data")
    chosen = slice(rows[0], rows[-1] + 1)  # a part's rows follow each other, so this stays a view of the map
    names = tuple(waveforms.listing.names[chosen])
    places = {word: index for index, word in enumerate(words)}
    labels = torch.tensor([places[name.partition("/")[0]] for name in names])
    return Clips(waveforms.array[chosen], labels, len(words), names, SAMPLE_RATE)


def _read_noise(source: Source, damaged: str) -> dict[str, NDArray[np.int16]]:
    noise, skipped = {}, []
    for path in source.noise:
        try:
            noise[path.stem] = read_sound(path)
        except DamagedSound as error:
            if damaged == "refuse":
                raise refusal(path.name, path.parent, str(error)) from error
            skipped.append(f"{path.name}: {error}")
    tell_skipped(skipped, source.place, damaged)
    return noise
