"""Writing files so that a crash loses nothing: temporary file, fsync, rename."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO


def write_atomically(path: Path, data: bytes | str) -> None:
    """Write `data` to `path` so that a reader sees the old file or the whole new one, never a part.

    The bytes go to a temporary file in the same folder, reach the disk (`fsync`), and take the name by `rename`.
    Missing parent folders are made. On any failure the temporary file is removed and `path` keeps what it had.

    Args:
        path: The file to write.
        data: Its content; text is written as UTF-8.

    Raises:
        OSError: The disk is full or the folder cannot be written; the message names `path`.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "records" / "a.json"
        >>> write_atomically(target, "{}")
        >>> target.read_text()
        '{}'
    """
    write_together({path: data})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files as `write_atomically` does one: no file takes its name before all of them are on the disk.

    So a full disk leaves all of the old files. The names are taken in the order given, one right after the other.

    Raises:
        OSError: As for one file; the message names the one that failed.
    """
    temporary: dict[Path, Path] = {}
    path = Path()
    try:
        for path, data in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path] = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            _write(temporary[path], data)
        for path in contents:
            os.replace(temporary[path], path)
    except BaseException as error:  # Ctrl-C too leaves nothing behind
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)
        if not isinstance(error, OSError):
            raise
        reason = error.strerror or str(error)
        raise OSError(
            error.errno,
            f"could not write {path}: {reason}; free some space or choose another --out, then run again",
        ) from error
    for folder in dict.fromkeys(path.parent for path in contents):
        sync_folder(folder)


@contextlib.contextmanager
def unfinished(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file beside `path`, to write and to read, for what is too large to hold in memory.

    `finish(stream, path)` gives it its name; without that, or where anything fails before it, the file is removed.
    Its name is `.{path.name}.` and eight more letters; who may read it is left to the umask.

    Raises:
        OSError: The disk is full or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "waves.bin"
        >>> with unfinished(target) as stream:
        ...     for part in (b"one", b"two"):
        ...         _ = stream.write(part)
        ...     finish(stream, target)
        >>> target.read_bytes()
        b'onetwo'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x+b") as stream:
            yield stream
    finally:
        temporary.unlink(missing_ok=True)


def finish(stream: IO[bytes], path: Path) -> None:
    """Bring what `unfinished` opened to the disk, close it and give it the name `path`, in the same folder."""
    stream.flush()
    os.fsync(stream.fileno())
    stream.close()
    os.replace(stream.name, path)
    sync_folder(path.parent)


def _write(path: Path, data: bytes | str) -> None:
    """Write a file that is not there yet, through to the disk; who may read it is left to the umask."""
    with path.open("xb") as stream:
        stream.write(data.encode() if isinstance(data, str) else data)
        stream.flush()
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable; does nothing where folders cannot be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
