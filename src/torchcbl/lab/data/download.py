"""Downloading a file whole: resumed where it broke off, checked before it takes its name."""

from __future__ import annotations

import http.client
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO

from torchcbl.files import sync_folder
from torchcbl.lab.data.cache import one_at_a_time, sha256_of
from torchcbl.lab.data.progress import Progress, silent

CHUNK = 1 << 18
TIMEOUT = 30.0


class DownloadError(OSError):
    """A file could not be downloaded; the message says what to do."""


@dataclass(frozen=True)
class _Promise:
    """What the server said of the whole file; None where it said nothing."""

    size: int | None
    sha256: str | None


def download(url: str, target: Path, *, sha256: str | None = None, progress: Progress = silent) -> Path:
    """Fetch `url` into `target`, unless `target` is there.

    The bytes go to `<target>.part`. A broken connection is taken up again from there (HTTP Range), at once
    for as long as each attempt brings new bytes, otherwise in the next call. The whole is checked against the
    length the server stated, and against `sha256`; where none is given, against the `X-Linked-ETag` that the
    Hugging Face hub sends for its large files, which is their SHA-256. A server that sends none leaves the
    length as the only check.

    Args:
        url: An http or https address.
        target: Where the file goes; missing folders are made.
        sha256: Its expected SHA-256, 64 hexadecimal digits.
        progress: Called with the file's name and the bytes had and expected.

    Returns:
        `target`.

    Raises:
        DownloadError: The server cannot be reached or refuses (what has come is kept), or the whole file has
            another SHA-256 (what has come is removed).
    """
    with one_at_a_time(target):
        if target.is_file():
            return target
        part = target.with_name(f"{target.name}.part")
        promise = _fetch(url, part, progress)
        _verify(url, part, sha256 or promise.sha256)
        os.replace(part, target)
        sync_folder(target.parent)
    return target


def _fetch(url: str, part: Path, progress: Progress) -> _Promise:
    """Add to `part` until it is whole, for as long as every attempt makes it longer than it ever was."""
    while True:
        before = _size(part)
        try:
            promise = _attempt(url, part, progress)
            if promise.size in (None, _size(part)):
                return promise
            reason = f"the connection closed after {_size(part):,} of {promise.size:,} bytes"
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
        if _size(part) <= before:
            resumed = f" (it goes on from byte {_size(part):,})" if _size(part) else ""
            raise DownloadError(
                f"could not download {url}: {reason}. Check the connection and run again{resumed}, or "
                f"fetch it by hand into a folder, under the name {part.stem}, and name that folder with --data"
            )


def _attempt(url: str, part: Path, progress: Progress) -> _Promise:
    """Ask for what is missing of `part` and append what comes."""
    part.parent.mkdir(parents=True, exist_ok=True)
    offset = _size(part)
    headers = {"User-Agent": "torchcbl"} | ({"Range": f"bytes={offset}-"} if offset else {})
    etags = _LinkedETags()
    try:
        response = urllib.request.build_opener(etags).open(
            urllib.request.Request(url, headers=headers), timeout=TIMEOUT
        )
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not offset:
            raise
        error.close()
        if _range(error.headers)[1] == offset:  # nothing is missing
            return _Promise(offset, etags.sha256)
        part.unlink()  # longer than the file itself, so of another file
        return _attempt(url, part, progress)
    with response, part.open("ab") as stream:
        etags.note(response.headers)
        total = _position(stream, response, offset)
        _copy(response, stream, total, progress)
    return _Promise(total, etags.sha256)


def _position(stream: IO[bytes], response: http.client.HTTPResponse, offset: int) -> int | None:
    """Empty `stream` unless the response goes on where it ends; return the whole file's size."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:  # the server does not know Range: from the start
        stream.truncate(0)
        stream.seek(0)
        length = response.headers["Content-Length"]
        return int(length) if length else None
    start, total = _range(response.headers)
    if start != offset:
        stream.truncate(0)
        raise DownloadError(f"asked for the bytes from {offset:,}, the server sent those from {start}")
    return total


def _copy(response: http.client.HTTPResponse, stream: IO[bytes], total: int | None, progress: Progress) -> None:
    name = f"downloading {Path(str(stream.name)).stem}"
    try:
        while chunk := response.read(CHUNK):
            stream.write(chunk)
            progress(name, stream.tell(), total)
    finally:
        stream.flush()
        os.fsync(stream.fileno())


def _range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and total size from `Content-Range: bytes 5-9/10`, `bytes 5-9/*` or `bytes */10`."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", headers.get("Content-Range", ""))
    start, total = match.groups() if match else (None, None)
    return int(start) if start else None, int(total) if total else None


class _LinkedETags(urllib.request.HTTPRedirectHandler):
    """Keeps the checksum the hub sends: it stands in the redirect, not in the answer it leads to."""

    sha256: str | None = None

    def note(self, headers: Message) -> None:
        etag = headers.get("X-Linked-ETag", "").strip('"').lower()
        if re.fullmatch("[0-9a-f]{64}", etag):
            self.sha256 = etag

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request | None:
        self.note(headers)
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _verify(url: str, part: Path, expected: str | None) -> None:
    if expected is None:
        return
    with part.open("rb") as stream:
        found = sha256_of(stream)
    if found != expected.lower():
        part.unlink()
        raise DownloadError(
            f"{url} arrived with SHA-256 {found}, expected {expected}; it was removed. "
            "Run again to download it anew; if that fails too, fetch it by hand and name its folder with --data"
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
