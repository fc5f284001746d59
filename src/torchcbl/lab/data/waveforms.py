"""Many sound files, decoded once into one memory-mapped array in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from torchcbl.files import finish, unfinished, write_atomically
from torchcbl.lab.data.cache import cache_folder, one_at_a_time, sha256_of
from torchcbl.lab.data.damage import check_damaged, refusal, tell_skipped
from torchcbl.lab.data.progress import Progress
from torchcbl.lab.data.sound import DamagedSound, fit_length, read_sound

# Part of every entry's stamp: raise it when the same file decodes to other samples.
DECODER = 1
TELL_EVERY = 200
LEFT_OVER = 3600.0  # seconds after which an unfinished file is of a process that died


class Encoded(NamedTuple):
    """One sound before it is decoded: the name and part it is known by, and its file or its content."""

    name: str
    part: str
    content: Path | bytes


@dataclass(frozen=True)
class Listing:
    """What `Waveforms` holds besides its array: of each row the name and part; of each file left out, why."""

    names: list[str]
    parts: list[str]
    skipped: list[str]


class Waveforms(NamedTuple):
    """Decoded sounds: int16, shape (N, S), a read-only memory map; and what each row is."""

    array: NDArray[np.int16]
    listing: Listing


@dataclass(frozen=True)
class Job:
    """Describe a set of sounds to decode.

    Args:
        place: Their folder; names the entry in the cache.
        variant: Which choice of what is in it, as the words; choices do not push each other out of the cache.
        stamp: Changes whenever the files do; see `stamp_of`.
        encoded: Yields the sounds, in the order of the rows.
        total: How many it yields.
        num_samples: The length each is cropped or padded to.
        damaged: "refuse" raises at the first file that cannot be decoded, "skip" leaves such files out.
    """

    place: Path
    variant: str
    stamp: str
    encoded: Callable[[], Iterable[Encoded]]
    total: int
    num_samples: int
    damaged: str

    def __post_init__(self) -> None:
        check_damaged(self.damaged)

    @property
    def key(self) -> str:
        """The name of the cache's entry."""
        identity = f"{self.place.resolve()}|{self.variant}|{self.num_samples}"
        return f"{self.place.resolve().name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"

    @property
    def full_stamp(self) -> str:
        """What must not have changed since the entry was made."""
        return f"{DECODER}|{self.num_samples}|{self.stamp}"


def stamp_of(paths: Iterable[Path]) -> str:
    """Digest the names, sizes and times of change of files; one that is missing counts as such."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = path.stat()
            digest.update(f"{path}|{status.st_size}|{status.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{path}|missing\n".encode())
    return digest.hexdigest()


def decoded_waveforms(job: Job, progress: Progress) -> Waveforms:
    """Decode the sounds of `job`, or map what was decoded before.

    An entry is a `.npy` and a small `.json` beside it with the stamp, the names, and the SHA-256 of both: a changed
    source is decoded anew, and a damaged or truncated entry too. Both take their names by a rename when they are
    whole, and the array's name holds its checksum, so a process that maps an older one keeps it.

    Args:
        job: What to decode.
        progress: Called every few hundred sounds.

    Returns:
        The array and what its rows are.

    Raises:
        ValueError: A file is damaged and `job.damaged` is "refuse", or none can be decoded.

    Warns:
        UserWarning: Files were skipped; or the cache cannot be written, and the array stays in memory.
    """
    entry = cache_folder() / "decoded" / f"{job.key}.json"
    with one_at_a_time(entry):
        found = _read(entry, job.full_stamp)
        if found is None:
            found = _make(entry, job, progress)
    tell_skipped(found.listing.skipped, job.place, job.damaged)
    return found


def _read(entry: Path, stamp: str) -> Waveforms | None:
    try:
        digest, _, text = entry.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() != digest:
            return None
        record = json.loads(text)
        path = entry.with_name(record["array"])
        if record["stamp"] != stamp or _sha256(path) != record["sha256"]:
            return None
        return Waveforms(np.load(path, mmap_mode="r"), Listing(**record["listing"]))
    except OSError:
        return None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return sha256_of(stream)


def _make(entry: Path, job: Job, progress: Progress) -> Waveforms:
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        path, listing = _write_array(entry, job, progress)
        record = {"stamp": job.full_stamp, "array": path.name, "sha256": _sha256(path), "listing": asdict(listing)}
        text = json.dumps(record).encode()
        write_atomically(entry, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
        _remove_older(entry, path)
        return Waveforms(np.load(path, mmap_mode="r"), listing)
    except OSError as error:
        warnings.warn(
            f"decoded sound could not be kept in {entry.parent} ({os.strerror(error.errno or 0)}), so it stays in "
            f"memory and will be decoded again next time: set TORCHCBL_CACHE to a folder with "
            f"{2 * job.total * job.num_samples / 1e6:,.0f} MB to spare",
            stacklevel=4,
        )
        listing = Listing([], [], [])
        return Waveforms(np.stack([*_rows(job, listing, progress)]), listing)


def _write_array(entry: Path, job: Job, progress: Progress) -> tuple[Path, Listing]:
    """Write rows as they are decoded: through a stream, for a full disk is an error there and a crash in a map."""
    listing = Listing([], [], [])
    with unfinished(entry) as stream:
        start = _write_header(stream, job.total, job.num_samples)
        for row in _rows(job, listing, progress):
            stream.write(row.tobytes())
        assert _write_header(stream, len(listing.names), job.num_samples) == start
        stream.seek(0)
        path = entry.with_name(f"{entry.stem}-{sha256_of(stream)[:12]}.npy")
        finish(stream, path)
    return path, listing


def _write_header(stream: IO[bytes], rows: int, num_samples: int) -> int:
    """Write a .npy header at the start and return where the rows begin; it is as long for any number of rows."""
    stream.seek(0)
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.int16)), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, {**header, "shape": (rows, num_samples)})
    return stream.tell()


def _rows(job: Job, listing: Listing, progress: Progress) -> Iterator[NDArray[np.int16]]:
    """Yield decoded rows, and note in `listing` what they are."""
    for done, (name, part, content) in enumerate(job.encoded(), 1):
        try:
            row = fit_length(read_sound(content), job.num_samples)
        except DamagedSound as error:
            if job.damaged == "refuse":
                raise refusal(name, job.place, str(error)) from error
            listing.skipped.append(f"{name}: {error}")
        else:
            listing.names.append(name)
            listing.parts.append(part)
            yield row
        if done % TELL_EVERY == 0 or done == job.total:
            progress(f"decoding {job.place.name}", done, job.total)
    if not listing.names:
        raise ValueError(
            f"none of the {job.total:,} files of {job.place} can be decoded: fetch them again. "
            f"The first: {listing.skipped[0] if listing.skipped else 'there is none'}"
        )


def _remove_older(entry: Path, kept: Path) -> None:
    """Remove arrays of the same entry that nothing names any more, and what a process that died left unfinished."""
    begun = f".{entry.name}."
    for path in [*entry.parent.glob(begun + "?" * 8), *entry.parent.glob(f"{entry.stem}-*.npy")]:
        with contextlib.suppress(OSError):  # gone already; or mapped by another process, where that forbids it
            left_over = time.time() - path.stat().st_mtime > LEFT_OVER
            if path != kept and (left_over or not path.name.startswith(begun)):
                path.unlink()
