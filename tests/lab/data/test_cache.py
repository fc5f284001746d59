from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from torchcbl.lab.data.cache import Arrays, cache_folder, decoded, one_at_a_time


class Decoder:
    """Makes recognisable arrays and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Arrays:
        self.calls += 1
        return {"images": np.arange(5000, dtype=np.uint8).reshape(50, 100), "labels": np.arange(50)}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "part.parquet"
    path.parent.mkdir()
    path.write_bytes(b"source")
    return path


def entry_of(cache: Path) -> Path:
    (entry,) = (cache / "decoded").glob("*.arrays")
    return entry


def assert_right(arrays: Arrays) -> None:
    expected = Decoder()()
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)
    assert all(arrays[name].dtype == expected[name].dtype for name in expected)


def test_decoded_once(source: Path, own_cache: Path) -> None:
    decoder = Decoder()
    for _ in range(3):
        assert_right(decoded(source, decoder))
    assert decoder.calls == 1
    assert [path.name for path in source.parent.iterdir()] == ["part.parquet"]
    assert entry_of(own_cache).name.startswith("part-")


def change_size(source: Path) -> None:
    source.write_bytes(b"another source")


def change_time(source: Path) -> None:
    os.utime(source, ns=(1, 1))


@pytest.mark.parametrize("change", [change_size, change_time])
def test_a_changed_source_is_decoded_anew(source: Path, own_cache: Path, change: Callable[[Path], None]) -> None:
    decoder = Decoder()
    decoded(source, decoder)
    change(source)
    assert_right(decoded(source, decoder))
    assert_right(decoded(source, decoder))
    assert decoder.calls == 2
    entry_of(own_cache)  # the old entry is replaced


def test_sources_of_one_name_do_not_meet(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / source.name
    other.parent.mkdir()
    other.write_bytes(b"source")
    decoder = Decoder()
    decoded(source, decoder)
    assert decoded(other, lambda: {"images": np.zeros(1, np.uint8)})["images"].shape == (1,)
    assert_right(decoded(source, decoder))
    assert decoder.calls == 1


@pytest.mark.parametrize("where", ["first byte", "pixels", "labels", "last byte of labels"])
def test_a_damaged_entry_is_decoded_anew(source: Path, own_cache: Path, where: str) -> None:
    decoder = Decoder()
    arrays = decoded(source, decoder)
    entry = entry_of(own_cache)
    content = bytearray(entry.read_bytes())
    pixels, labels = (content.index(arrays[name].tobytes()) for name in ("images", "labels"))
    last = labels + arrays["labels"].nbytes - 1
    content[{"first byte": 0, "pixels": pixels + 99, "labels": labels, "last byte of labels": last}[where]] ^= 1
    entry.write_bytes(content)
    for _ in range(2):
        assert_right(decoded(source, decoder))
    assert decoder.calls == 2


def test_no_damaged_byte_is_ever_passed_on(source: Path, own_cache: Path) -> None:
    decoded(source, Decoder())
    entry = entry_of(own_cache)
    content = entry.read_bytes()
    for position in range(0, len(content), 23):
        entry.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        assert_right(decoded(source, Decoder()))


@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999])
def test_a_truncated_entry_is_decoded_anew(source: Path, own_cache: Path, kept: float) -> None:
    decoder = Decoder()
    decoded(source, decoder)
    entry = entry_of(own_cache)
    entry.write_bytes(entry.read_bytes()[: int(kept * entry.stat().st_size)])
    assert_right(decoded(source, decoder))
    assert decoder.calls == 2


def test_a_cache_that_cannot_be_written_costs_a_warning(source: Path, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"could not be kept in .*decoded again next time: set TORCHCBL_CACHE"):
        assert_right(decoded(source, Decoder()))


def test_a_failing_decoder_leaves_nothing_behind(source: Path, own_cache: Path) -> None:
    def fail() -> Arrays:
        raise ValueError("not an image")

    with pytest.raises(ValueError, match="not an image"):
        decoded(source, fail)
    assert not list((own_cache / "decoded").glob("*.arrays"))
    assert_right(decoded(source, Decoder()))


def test_the_cache_folder_may_be_chosen(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == own_cache
    monkeypatch.delenv("TORCHCBL_CACHE")
    assert cache_folder() == Path.home() / ".cache" / "torchcbl"


WORKER = """
import sys, time, pathlib, numpy as np
from torchcbl.lab.data.cache import decoded
source, log = map(pathlib.Path, sys.argv[1:])
def decode():
    with log.open("a") as stream:
        stream.write("x")
    time.sleep(0.5)
    return {"images": np.full((1000, 1000), 7, np.uint8)}
assert (decoded(source, decode)["images"] == 7).all()
"""


def test_processes_at_the_same_time_decode_once(source: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", WORKER, str(source), str(log)]
    processes = [subprocess.Popen(command) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text() == "x"


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "thing"
    code = """
import sys, time, pathlib
from torchcbl.lab.data.cache import one_at_a_time
with one_at_a_time(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
    start = time.monotonic()
    with one_at_a_time(path):
        assert time.monotonic() - start < 30
