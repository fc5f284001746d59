"""A file through which a job tells whoever waits for it how far it is: a line of JSON for each message."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from torchcbl.lab.runs import RunState
from torchcbl.lab.worker import Problem


@dataclass(frozen=True)
class Begun:
    """A job has begun, or gone on.

    Args:
        host: Where.
    """

    host: str


@dataclass(frozen=True)
class Ended:
    """A job has done its run, or failed.

    Args:
        problem: What went wrong; None if nothing did.
    """

    problem: Problem | None = None

    @property
    def reason(self) -> str:
        """What went wrong; nothing if nothing did."""
        return self.problem.reason if self.problem else ""


Message = Begun | RunState | Ended


class Journal:
    """Append messages to a file in one process, and read them in another.

    Only whole lines are read, so a reader never sees half a message, and a job that goes on elsewhere goes on in the
    same file. What a full disk cut off stays on a line of its own, which is passed over.

    Args:
        path: The file, on storage that both see.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "states.jsonl"
        >>> Journal(path).append(Begun("node1"))
        >>> Journal(path).read()
        [Begun(host='node1')]
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def append(self, message: Message) -> None:
        """Add a message.

        Raises:
            OSError: The file cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = f"\n{json.dumps({type(message).__name__: asdict(message)})}\n".encode()
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(descriptor, line) < len(line):
                raise OSError(errno.ENOSPC, f"could not write {self.path}: the disk is full")
        finally:
            os.close(descriptor)

    def read(self) -> list[Message]:
        """Take the messages that have come since the last time."""
        try:
            with self.path.open("rb") as stream:
                stream.seek(self._position)
                lines = stream.read()
        except FileNotFoundError:
            return []
        whole = lines[: lines.rfind(b"\n") + 1]
        self._position += len(whole)
        return [message for line in whole.splitlines() if (message := _message(line)) is not None]

    def clear(self) -> None:
        """Forget all messages."""
        self.path.unlink(missing_ok=True)
        self._position = 0


def _message(line: bytes) -> Message | None:
    try:
        ((kind, values),) = json.loads(line).items()
    except ValueError:  # a blank line, or one that was cut off
        return None
    if kind == Begun.__name__:
        return Begun(**values)
    if kind == Ended.__name__:
        problem = values["problem"]
        return Ended(None if problem is None else Problem(**problem))
    return RunState(**values)
