"""Small sound files in the two layouts of Speech Commands."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

from torchcbl.lab.data.speech_commands import WORDS_35, which_part

# Two speakers of each part, by the published rule.
SPEAKERS = {
    "train": ("00176480", "004ae714"),
    "validation": ("026290a7", "060cd039"),
    "test": ("0c40e715", "0ea0e2f4"),
}
FIVE = ("bed", "cat", "happy", "no", "yes")


def tone(num_samples: int, *, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    return np.rint(8000 * np.sin(2 * np.pi * hertz * np.arange(num_samples) / rate)).astype(np.int16)


def encode_sound(samples: np.ndarray, *, rate: int = 16_000, kind: str = "WAV", subtype: str = "PCM_16") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=kind, subtype=subtype)
    return stream.getvalue()


def noise_of(name: str, num_samples: int = 16_000) -> np.ndarray:
    """Samples that no other name has."""
    seed = int.from_bytes(name.encode(), "little") % 2**32
    return np.random.default_rng(seed).integers(-3000, 3000, num_samples, dtype=np.int16)


def clip_names(words: tuple[str, ...], per_speaker: int = 1) -> list[str]:
    return [
        f"{word}/{speaker}_nohash_{number}.wav"
        for word in words
        for speakers in SPEAKERS.values()
        for speaker in speakers
        for number in range(per_speaker)
    ]


def write_archive(folder: Path, words: tuple[str, ...] = FIVE, *, lists: bool = True) -> Path:
    """Write the official layout, unpacked: six clips a word, one noise, and what else stands in the archive."""
    names = clip_names(words)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode_sound(noise_of(name)))
    (folder / "_background_noise_").mkdir()
    (folder / "_background_noise_" / "pink.wav").write_bytes(encode_sound(noise_of("pink", 40_000)))
    (folder / "_background_noise_" / "README.md").write_text("noise")
    (folder / "LICENSE").write_text("CC BY 4.0")
    for hidden in (words[0], "_background_noise_"):
        (folder / hidden / "._hidden.wav").write_bytes(b"what some systems write beside a file")
    if lists:
        for part, file in (("validation", "validation_list.txt"), ("test", "testing_list.txt")):
            chosen = [name for name in names if which_part(name) == part]
            (folder / file).write_text("".join(f"{name}\n" for name in chosen))
    return folder


def pack(folder: Path) -> bytes:
    """Pack an unpacked archive as the official one is: names that begin with ./"""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        archive.add(folder, arcname=".")
    return stream.getvalue()


def write_parts(folder: Path, words: tuple[str, ...] = FIVE) -> Path:
    """Write the parquet layout: `five_words/*.parquet` and `background_noise/*.flac`."""
    place = folder / "five_words"
    place.mkdir(parents=True)
    for part in SPEAKERS:
        names = [name for name in clip_names(words) if which_part(name) == part]
        write_part(place / f"{part}-00000-of-00001.parquet", names)
    (folder / "background_noise").mkdir()
    noise = encode_sound(noise_of("tap", 40_000), kind="FLAC")
    (folder / "background_noise" / "tap.flac").write_bytes(noise)
    return place


def write_part(path: Path, names: list[str], contents: list[bytes | None] | None = None) -> None:
    encoded = contents or [encode_sound(noise_of(name), kind="FLAC") for name in names]
    audio_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    audio = pa.array([{"bytes": content, "path": None} for content in encoded], audio_type)
    labels = [WORDS_35.index(name.split("/")[0]) for name in names]
    pq.write_table(pa.table({"file": names, "audio": audio, "label": labels}), path)
