from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from web_server import WebServer

from torchcbl.lab.data.download import DownloadError, download

CONTENT = bytes(range(256)) * 4000  # 1,024,000 bytes: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(server: WebServer) -> str:
    server.content["/file.bin"] = CONTENT
    return f"{server.base}/file.bin"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "deep" / "file.bin"


def part_of(target: Path) -> Path:
    return target.with_name("file.bin.part")


def test_whole_file_with_progress(url: str, target: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    assert download(url, target, sha256=SHA256, progress=lambda *news: told.append(news)) == target
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()
    assert told[-1] == ("downloading file.bin", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in told] == sorted({done for _, done, _ in told})


def test_a_file_that_is_there_is_not_asked_for(server: WebServer, url: str, target: Path) -> None:
    download(url, target)
    download(url, target)
    assert len(server.asked) == 1


def test_a_dropped_connection_is_taken_up_where_it_broke(server: WebServer, url: str, target: Path) -> None:
    server.drops = [300_000, 200_000]
    download(url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert [wanted for _, wanted in server.asked] == [None, "bytes=300000-", "bytes=500000-"]


def test_what_came_is_kept_for_the_next_call(server: WebServer, url: str, target: Path) -> None:
    server.drops = [300_000, 0]
    with pytest.raises(DownloadError, match=r"closed after 300,000 of 1,024,000 bytes.*goes on from byte 300,000"):
        download(url, target)
    assert part_of(target).read_bytes() == CONTENT[:300_000]
    assert not target.exists()
    download(url, target, sha256=SHA256)
    assert server.asked[-1][1] == "bytes=300000-"
    assert target.read_bytes() == CONTENT


def test_progress_goes_on_where_a_download_is_resumed(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT[:1_000_000])
    told: list[int] = []
    download(url, target, progress=lambda what, done, total: told.append(done))
    assert told == [len(CONTENT)]


def test_a_server_without_range_starts_anew(server: WebServer, url: str, target: Path) -> None:
    server.supports_range = False
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(b"x" * 400_000)
    told: list[int] = []
    download(url, target, sha256=SHA256, progress=lambda what, done, total: told.append(done))
    assert target.read_bytes() == CONTENT
    assert max(told) == len(CONTENT)


def test_a_server_that_always_drops_and_has_no_range_ends(server: WebServer, url: str, target: Path) -> None:
    server.supports_range = False
    server.drops = [300_000] * 9
    with pytest.raises(DownloadError, match="closed after 300,000"):
        download(url, target)
    assert len(server.asked) == 2


def test_a_whole_part_takes_its_name_without_another_byte(server: WebServer, url: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT)
    download(url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1


def test_a_part_longer_than_the_file_is_dropped(url: str, target: Path) -> None:
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT + b"x")
    download(url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_an_answer_from_another_place_is_refused(server: WebServer, url: str, target: Path) -> None:
    server.range_error = 7
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT[:10])
    with pytest.raises(DownloadError, match="asked for the bytes from 10, the server sent those from 17"):
        download(url, target)
    download(url, target, sha256=SHA256)  # starts anew, so Range is not needed
    assert target.read_bytes() == CONTENT


def test_without_a_stated_length_the_end_is_the_end(server: WebServer, url: str, target: Path) -> None:
    server.states_length = False
    download(url, target, sha256=SHA256)
    assert target.read_bytes() == CONTENT


def test_wrong_checksum_removes_what_came(url: str, target: Path) -> None:
    with pytest.raises(DownloadError, match=f"SHA-256 {SHA256}, expected {'0' * 64}; it was removed"):
        download(url, target, sha256="0" * 64)
    assert not target.exists()
    assert not part_of(target).exists()


def test_the_hubs_checksum_is_read_from_its_redirect(server: WebServer, url: str, target: Path) -> None:
    server.linked_etag = f'"{SHA256}"'
    download(url, target)
    assert target.read_bytes() == CONTENT
    target.unlink()
    server.linked_etag = f'"{"0" * 64}"'
    with pytest.raises(DownloadError, match=f"expected {'0' * 64}"):
        download(url, target)


def test_the_hubs_checksum_guards_a_resumed_download_too(server: WebServer, url: str, target: Path) -> None:
    server.linked_etag = f'"{SHA256}"'
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(b"of another version")
    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        download(url, target)
    part_of(target).write_bytes(b"x" * len(CONTENT))  # as long as the file: the server answers 416
    with pytest.raises(DownloadError, match=f"expected {SHA256}"):
        download(url, target)


def test_an_etag_that_is_no_sha256_is_not_taken_for_one(server: WebServer, url: str, target: Path) -> None:
    server.linked_etag = '"5d41402abc4b2a76b9719d911017c592"'
    download(url, target)
    assert target.read_bytes() == CONTENT


def test_missing_on_the_server(server: WebServer, target: Path) -> None:
    with pytest.raises(DownloadError, match=r"HTTP Error 404.*by hand.*file\.bin.*--data"):
        download(f"{server.base}/other.bin", target)
    assert not part_of(target).exists()


def test_nobody_answers(target: Path) -> None:
    server = WebServer()  # takes a port, then gives it back
    server.start()
    server.stop()
    with pytest.raises(DownloadError, match=r"refused.*Check the connection.*by hand.*--data"):
        download(f"{server.base}/file.bin", target)


def test_two_processes_share_one_download(server: WebServer, url: str, target: Path) -> None:
    code = "import sys, pathlib, torchcbl.lab.data.download as d; d.download(sys.argv[1], pathlib.Path(sys.argv[2]))"
    both = [subprocess.Popen([sys.executable, "-c", code, url, str(target)], env={**os.environ}) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert target.read_bytes() == CONTENT
    assert len(server.asked) == 1
