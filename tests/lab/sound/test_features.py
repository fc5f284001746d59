from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sound_cases import clips

from torchcbl.lab.data.clips import Clips
from torchcbl.lab.sound import features as module
from torchcbl.lab.sound.features import features_on_disk
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm


class Watch:
    """A progress that notes what it is told."""

    def __init__(self) -> None:
        self.done: list[int] = []

    def __call__(self, what: str, done: int, total: int | None, /) -> None:
        assert what == "computing mel spectrograms"
        assert total is not None
        self.done.append(done)


def entries(cache: Path) -> list[Path]:
    return sorted((cache / "features").glob("*.npy"))


def expected(data: Clips, front_end: MelFrontEnd) -> NDArray[np.float32]:
    return front_end.log_mel(from_pcm(data.waveforms)).numpy()


def test_computed_once_and_read_from_disk(front_end: MelFrontEnd, own_cache: Path) -> None:
    data, watch = clips(300), Watch()
    first = features_on_disk(data, front_end, watch)
    assert watch.done == [0, 128, 256, 300]
    again = features_on_disk(data, front_end, watch)
    assert len(watch.done) == 4
    for features in (first, again):
        assert isinstance(features, np.memmap)
        assert not features.flags.writeable
        assert features.dtype == np.float32
        assert np.array_equal(features, expected(data, front_end))
    assert [path.name for path in (own_cache / "features").iterdir() if not path.name.endswith(".lock")] == [
        entries(own_cache)[0].name
    ]


def test_the_array_is_the_files(front_end: MelFrontEnd, own_cache: Path) -> None:
    """numpy reads an entry by itself: what follows the array is not looked at."""
    features = features_on_disk(clips(3), front_end)
    assert np.array_equal(np.load(entries(own_cache)[0]), features)


def test_mean_and_std_have_no_part_in_it(front_end: MelFrontEnd, own_cache: Path) -> None:
    data = clips(3)
    features = features_on_disk(data, front_end)
    front_end.fit(features)
    assert np.array_equal(features_on_disk(data, front_end), features)
    assert len(entries(own_cache)) == 1


def test_other_samples_or_settings_are_other_entries(front_end: MelFrontEnd, own_cache: Path) -> None:
    data = clips(3)
    changed = data.waveforms.copy()
    changed[2, 1000] += 1
    other_filters = MelFrontEnd(filters=front_end.filters * 2)
    cases = [
        (data, front_end),
        (replace(data, waveforms=changed), front_end),
        (data.take(torch.tensor([1, 0, 2])), front_end),
        (data.take(torch.tensor([0, 1])), front_end),
        (data, MelFrontEnd(floor=1e-5)),
        (data, MelFrontEnd(hop=80)),
        (data, other_filters),
    ]
    for sounds, end in cases:
        assert np.array_equal(features_on_disk(sounds, end), expected(sounds, end))
    assert len(entries(own_cache)) == len(cases)


def test_names_and_labels_have_no_part_in_it(front_end: MelFrontEnd, own_cache: Path) -> None:
    data = clips(3)
    features_on_disk(data, front_end)
    watch = Watch()
    features_on_disk(replace(data, labels=data.labels.flip(0), names=("a", "b", "c")), front_end, watch)
    assert not watch.done


def truncate(content: bytes) -> bytes:
    return content[:-1]


def truncate_to_header(content: bytes) -> bytes:
    return content[:20]


def empty(content: bytes) -> bytes:
    return b""


def flip_a_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def damage_header(content: bytes) -> bytes:
    return content.replace(b"'<f4'", b"'>f4'")


def append(content: bytes) -> bytes:
    return content + b"0"


@pytest.mark.parametrize("damage", [truncate, truncate_to_header, empty, flip_a_bit, damage_header, append])
def test_damaged_entries_are_made_again(damage: object, front_end: MelFrontEnd, own_cache: Path) -> None:
    data = clips(3)
    features_on_disk(data, front_end)
    (entry,) = entries(own_cache)
    whole = entry.read_bytes()
    entry.write_bytes(damage(whole))  # type: ignore[operator]
    assert np.array_equal(features_on_disk(data, front_end), expected(data, front_end))
    assert entry.read_bytes() == whole


def test_what_breaks_off_leaves_nothing(
    front_end: MelFrontEnd, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    def stop(what: str, done: int, total: int | None, /) -> None:
        if done:
            raise StoppedError

    monkeypatch.setattr(module, "BATCH", 2)
    with pytest.raises(StoppedError):
        features_on_disk(clips(5), front_end, stop)
    assert [path.suffix for path in (own_cache / "features").iterdir()] == [".lock"]


def test_a_cache_that_cannot_be_written(front_end: MelFrontEnd, own_cache: Path) -> None:
    own_cache.write_bytes(b"a file where the folder should be")
    data = clips(3)
    with pytest.warns(UserWarning, match="mel spectrograms could not be kept in .*set TORCHCBL_CACHE"):
        features = features_on_disk(data, front_end)
    assert np.array_equal(features, expected(data, front_end))


def test_another_sample_rate_is_refused(front_end: MelFrontEnd) -> None:
    with pytest.raises(ValueError, match="clips have 8000 samples per second and the front end takes 16000: build"):
        features_on_disk(replace(clips(2), sample_rate=8_000), front_end)


def test_the_library_is_loaded_where_a_filter_bank_is_made() -> None:
    code = "import sys, torchcbl.lab.sound; assert 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
