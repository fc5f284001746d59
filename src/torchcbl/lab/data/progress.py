"""How a slow job tells how far it has come."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Anything that can be called now and then with (what, done, total).

    `what` names the job for a reader ("decoding train-00000-of-00001.parquet"); `done` and `total` count
    bytes in a download, images in a decoding; `total` is None where nobody knows it.
    """

    def __call__(self, what: str, done: int, total: int | None, /) -> None:
        """Show that `done` of `total` units are finished."""


def silent(what: str, done: int, total: int | None, /) -> None:
    """Show nothing."""
