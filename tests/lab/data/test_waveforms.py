from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sound_files import encode_sound, noise_of

from torchcbl.lab.data import waveforms
from torchcbl.lab.data.progress import silent
from torchcbl.lab.data.waveforms import Encoded, Job, Waveforms, decoded_waveforms, stamp_of

NAMES = tuple(f"w/{number}.wav" for number in range(20))


class Sounds:
    """Files in a folder, and how often they were asked for."""

    def __init__(self, place: Path) -> None:
        self.place, self.calls = place, 0
        for name in NAMES:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(encode_sound(noise_of(name, 300)))

    def __call__(self) -> Iterator[Encoded]:
        self.calls += 1
        return (Encoded(name, "train", self.place / name) for name in NAMES)

    def job(self, *, num_samples: int = 400, variant: str = "", damaged: str = "refuse") -> Job:
        stamp = stamp_of(self.place / name for name in NAMES)
        return Job(self.place, variant, stamp, self, len(NAMES), num_samples, damaged)

    def decode(self) -> Waveforms:
        return decoded_waveforms(self.job(), silent)


@pytest.fixture
def sounds(tmp_path: Path) -> Sounds:
    return Sounds(tmp_path / "sounds")


def entries(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "decoded").iterdir() if path.suffix != ".lock")


def array_file(cache: Path) -> Path:
    (path,) = (cache / "decoded").glob("*.npy")
    return path


def record_file(cache: Path) -> Path:
    (path,) = (cache / "decoded").glob("*.json")
    return path


def assert_right(got: Waveforms) -> None:
    assert got.listing.names == [*NAMES]
    assert got.listing.parts == ["train"] * 20
    assert np.array_equal(got.array[:, :300], [noise_of(name, 300) for name in NAMES])
    assert not got.array[:, 300:].any()


def test_decoded_once_into_a_read_only_map(sounds: Sounds, own_cache: Path) -> None:
    for _ in range(3):
        got = sounds.decode()
        assert_right(got)
        assert isinstance(got.array, np.memmap)
        assert not got.array.flags.writeable
    assert sounds.calls == 1
    assert entries(own_cache) == [".json", ".npy"]
    assert np.array_equal(np.load(array_file(own_cache)), got.array)


def test_tells_how_far_it_is(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveforms, "TELL_EVERY", 8)
    told: list[tuple[str, int, int | None]] = []
    decoded_waveforms(sounds.job(), lambda *news: told.append(news))
    assert told == [("decoding sounds", done, 20) for done in (8, 16, 20)]
    decoded_waveforms(sounds.job(), lambda *news: told.append(news))
    assert len(told) == 3


def change_size(path: Path) -> None:
    changed = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(changed, changed))


def change_time(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("change", [change_size, change_time])
def test_a_changed_source_is_decoded_anew(sounds: Sounds, own_cache: Path, change: Callable[[Path], None]) -> None:
    mapped = sounds.decode()
    change(sounds.place / NAMES[7])
    assert_right(sounds.decode())
    assert sounds.calls == 2
    assert entries(own_cache) == [".json", ".npy"]
    assert_right(mapped)  # what was mapped before stays whole


def test_other_samples_under_the_same_name(sounds: Sounds, own_cache: Path) -> None:
    mapped = sounds.decode()
    (sounds.place / NAMES[7]).write_bytes(encode_sound(noise_of("other", 400)))
    assert np.array_equal(sounds.decode().array[7], noise_of("other", 400))
    assert entries(own_cache) == [".json", ".npy"]  # the old array is gone
    assert_right(mapped)


def test_a_new_decoder_decodes_anew(sounds: Sounds, monkeypatch: pytest.MonkeyPatch) -> None:
    sounds.decode()
    monkeypatch.setattr(waveforms, "DECODER", waveforms.DECODER + 1)
    sounds.decode()
    assert sounds.calls == 2


def test_choices_and_lengths_do_not_push_each_other_out(sounds: Sounds) -> None:
    jobs = [sounds.job(), sounds.job(variant="bed,cat"), sounds.job(num_samples=200)]
    lengths = [decoded_waveforms(job, silent).array.shape[1] for job in jobs * 2]
    assert lengths == [400, 400, 200] * 2
    assert sounds.calls == 3


@pytest.mark.parametrize("kind", [".npy", ".json"])
def test_no_damaged_byte_is_ever_passed_on(sounds: Sounds, own_cache: Path, kind: str) -> None:
    sounds.decode()
    (path,) = (own_cache / "decoded").glob(f"*{kind}")
    content = path.read_bytes()
    positions = range(0, len(content), len(content) // 20)
    for position in positions:
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        assert_right(sounds.decode())
    assert sounds.calls == 1 + len(positions)


@pytest.mark.parametrize("kind", [".npy", ".json"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.999, None])
def test_a_truncated_or_lost_entry_is_decoded_anew(
    sounds: Sounds, own_cache: Path, kind: str, kept: float | None
) -> None:
    sounds.decode()
    (path,) = (own_cache / "decoded").glob(f"*{kind}")
    content = path.read_bytes()
    path.unlink()  # and not written over: what is mapped must not shrink
    if kept is not None:
        path.write_bytes(content[: int(kept * len(content))])
    for _ in range(2):
        assert_right(sounds.decode())
    assert sounds.calls == 2


def test_skipped_files_leave_no_gap(sounds: Sounds, own_cache: Path) -> None:
    for row in (0, 8, 19):
        (sounds.place / NAMES[row]).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 3 damaged files of .*: w/0.wav: it is .*; w/8.wav: .*; w/19.wav"):
        got = decoded_waveforms(sounds.job(damaged="skip"), silent)
    left = [name for row, name in enumerate(NAMES) if row not in (0, 8, 19)]
    assert got.listing.names == left
    assert np.array_equal(got.array[:, :300], [noise_of(name, 300) for name in left])
    assert np.load(array_file(own_cache)).shape == (17, 400)


def test_many_skipped_files_are_counted(sounds: Sounds) -> None:
    for name in NAMES[:15]:
        (sounds.place / name).write_bytes(b"")
    with pytest.warns(UserWarning, match=r"left out 15 damaged files .*w/9.wav: [^;]*; and 5 more$"):
        decoded_waveforms(sounds.job(damaged="skip"), silent)


def test_nothing_but_damaged_files(sounds: Sounds, own_cache: Path) -> None:
    for name in NAMES:
        (sounds.place / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 20 files of .*sounds can be decoded: .* The first: w/0.wav: it"):
        decoded_waveforms(sounds.job(damaged="skip"), silent)
    assert entries(own_cache) == []


def test_a_refusal_leaves_nothing_behind(sounds: Sounds, own_cache: Path) -> None:
    (sounds.place / NAMES[12]).write_bytes(b"")
    with pytest.raises(ValueError, match=r"cannot use w/12.wav of .*sounds: it is no sound"):
        sounds.decode()
    assert entries(own_cache) == []


def test_a_cache_that_cannot_be_written_costs_a_warning(sounds: Sounds, own_cache: Path) -> None:
    own_cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match=r"sound could not be kept in .*decoded again next time: set TORCHCBL_CACHE"):
        assert_right(sounds.decode())


def test_a_full_disk_costs_a_warning(sounds: Sounds, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(waveforms.os, "fsync", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        assert_right(sounds.decode())
    assert entries(own_cache) == []


def test_what_a_dead_process_left_is_removed(sounds: Sounds, own_cache: Path) -> None:
    sounds.decode()
    record = record_file(own_cache)
    old, fresh, lock = (record.with_name(f".{record.name}.{name}") for name in ("0123abcd", "4567abcd", "lock"))
    for path in (old, fresh):
        path.write_bytes(b"unfinished")
    for path in (old, lock):
        os.utime(path, (1, 1))
    change_time(sounds.place / NAMES[0])
    sounds.decode()
    assert fresh.exists()
    assert lock.exists()
    assert not old.exists()


WORKER = """
import sys, time, pathlib
from torchcbl.lab.data.progress import silent
from torchcbl.lab.data.waveforms import Encoded, Job, decoded_waveforms
place, log = map(pathlib.Path, sys.argv[1:])
def encoded():
    with log.open("a") as stream:
        stream.write("x")
    time.sleep(0.5)
    for number in range(20):
        yield Encoded(f"w/{number}.wav", "train", place / f"w/{number}.wav")
got = decoded_waveforms(Job(place, "", "stamp", encoded, 20, 400, "refuse"), silent)
assert got.array.shape == (20, 400) and got.array[:, :300].any(1).all()
"""


def test_processes_at_the_same_time_decode_once(sounds: Sounds, tmp_path: Path) -> None:
    log = tmp_path / "log"
    command = [sys.executable, "-c", WORKER, str(sounds.place), str(log)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert log.read_text() == "x"


def test_what_to_do_with_damaged_files_must_be_known(sounds: Sounds) -> None:
    with pytest.raises(ValueError, match="damaged must be 'refuse' or 'skip', got 'keep': choose what to do"):
        sounds.job(damaged="keep")
