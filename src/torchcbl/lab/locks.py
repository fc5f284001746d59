"""Locks on files: they die with the process that holds them, so that no crash leaves one behind."""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Iterator
from pathlib import Path

POLL_SECONDS = 0.1
_UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}


@contextlib.contextmanager
def hold(path: Path, seconds: float = 0.0) -> Iterator[None]:
    """Hold the lock `path` for as long as this is open.

    Where the system or the file system has no locks, nothing is held.

    Args:
        path: The file that is locked; it is made, and stays.
        seconds: How long to wait for another process to let go.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file cannot be made.

    Example:
        >>> import tempfile
        >>> with hold(Path(tempfile.mkdtemp()) / ".lock"):
        ...     print("alone")
        alone
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two at once are then not noticed
        yield
        return
    deadline = time.monotonic() + seconds
    with path.open("w") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise
                time.sleep(POLL_SECONDS)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                break
        yield


@contextlib.contextmanager
def hold_saying(path: Path, busy: str, fault: str, remedy: str) -> Iterator[None]:
    """Hold the lock `path`, or say in the caller's words why it cannot be had; what goes wrong inside is left alone.

    Args:
        path: As in `hold`.
        busy: Said where another process holds it.
        fault: Said, with the system's reason, where the file cannot be made.
        remedy: Said after that.

    Raises:
        BlockingIOError: Another process holds it.
        OSError: The file cannot be made.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(path))
        except BlockingIOError as error:
            raise BlockingIOError(busy) from error
        except OSError as error:
            raise OSError(error.errno, f"{fault}: {error.strerror or error}; {remedy}") from error
        yield
