"""A folder for what can be had again: downloaded files and decoded images."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from torchcbl.files import write_atomically

# Part of every entry's stamp: raise it when what is decoded from the same file changes.
DECODER = 1
DIGEST_SIZE = 64  # bytes of a SHA-256 in hexadecimal

Arrays = dict[str, NDArray[np.uint8] | NDArray[np.int64]]


def cache_folder() -> Path:
    """Name the cache folder: TORCHCBL_CACHE, else ~/.cache/torchcbl. It may not exist yet.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, TORCHCBL_CACHE="/somewhere/else"):
        ...     cache_folder().as_posix()
        '/somewhere/else'
    """
    return Path(os.environ.get("TORCHCBL_CACHE") or "~/.cache/torchcbl").expanduser()


@contextlib.contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Make other processes that ask for the same `path` wait until the block ends.

    It saves work and guards a half-finished download; nothing that is renamed into place depends on it. A
    lock dies with its process. Where there are none (Windows, some network folders, a read-only cache) nobody
    waits.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def decoded(source: Path, decode: Callable[[], Arrays], *, variant: str = "", stamp: str = "") -> Arrays:
    """Return what `decode` makes of the file `source`, from the cache where it has been made before.

    An entry carries the source's path, size and time of change, so a changed source is decoded anew; and its own
    SHA-256, so a damaged or truncated entry is too. (It is this checksum followed by an uncompressed .npz. Those
    inside the .npz leave out its own headers, and are not looked at where a damaged header cuts the reading short.)

    Args:
        source: The file or folder that is decoded; it is never written to, nor is its folder.
        decode: Makes named arrays from it.
        variant: Which choice of what can be made of it; choices do not push each other out of the cache.
        stamp: What else must not have changed: for a folder, the files in it.

    Returns:
        The named arrays.

    Warns:
        UserWarning: The cache cannot be written; the arrays are returned all the same.
    """
    status = source.stat()
    place = f"{source.resolve()}|{variant}".rstrip("|")
    stamp = f"{DECODER}|{place}|{status.st_size}|{status.st_mtime_ns}|{stamp}".rstrip("|")
    # One entry per source, so that entries of replaced sources do not pile up.
    name = f"{source.stem}-{hashlib.sha256(place.encode()).hexdigest()[:12]}.arrays"
    entry = cache_folder() / "decoded" / name
    with one_at_a_time(entry):
        arrays = _read(entry, stamp)
        if arrays is None:
            arrays = decode()
            _write(entry, arrays, stamp)
    return arrays


def _read(entry: Path, stamp: str) -> Arrays | None:
    try:
        with entry.open("rb") as stream:
            digest = stream.read(DIGEST_SIZE)
            if sha256_of(stream).encode() != digest:
                return None
            stream.seek(DIGEST_SIZE)
            with np.load(stream) as archive:
                arrays = dict(archive)
    except OSError:
        return None
    return arrays if str(arrays.pop("stamp")) == stamp else None


def _write(entry: Path, arrays: Arrays, stamp: str) -> None:
    buffer = io.BytesIO()
    buffer.seek(DIGEST_SIZE)
    np.savez(buffer, stamp=np.array(stamp), **arrays)  # type: ignore[arg-type]
    buffer.seek(DIGEST_SIZE)
    digest = sha256_of(buffer).encode()
    buffer.seek(0)
    buffer.write(digest)
    try:
        write_atomically(entry, buffer.getvalue())
    except OSError as error:
        warnings.warn(
            f"decoded images could not be kept in {entry.parent} ({os.strerror(error.errno or 0)}), "
            "so they will be decoded again next time: set TORCHCBL_CACHE to a folder with "
            f"{buffer.getbuffer().nbytes / 1e6:,.0f} MB to spare",
            stacklevel=3,
        )


def sha256_of(stream: IO[bytes]) -> str:
    """Hash what is left of `stream`."""
    digest = hashlib.sha256()
    while chunk := stream.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
