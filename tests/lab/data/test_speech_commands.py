from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sound_files import (
    FIVE,
    SPEAKERS,
    clip_names,
    encode_sound,
    noise_of,
    pack,
    tone,
    write_archive,
    write_part,
    write_parts,
)
from web_server import WebServer

from torchcbl.lab.data import speech_folder
from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.download import DownloadError
from torchcbl.lab.data.speech_commands import (
    FIVE_WORDS,
    WORDS_35,
    SpeechCommands,
    find_speech_commands,
    load_speech_commands,
    speaker_of,
    which_part,
)

PARTS = ("train", "validation", "test")
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}


@pytest.fixture(autouse=True)
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHCBL_SPEECH_COMMANDS_URL", raising=False)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_archive(tmp_path / "data" / "speech_commands")


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return write_parts(tmp_path / "data" / "speech_commands")


@pytest.fixture(scope="session")
def real_folder() -> Path:
    folder = Path(os.environ.get("TORCHCBL_DATA") or "nowhere") / "speech_commands"
    if not (folder / "five_words").is_dir():
        pytest.skip("real Speech Commands are not here: set TORCHCBL_DATA to the folder that holds speech_commands")
    return folder


@pytest.fixture(scope="session")
def real_words(real_folder: Path) -> SpeechCommands:
    """Load the real five words, through the user's own cache: decoding them once is enough."""
    return load_speech_commands(real_folder, words=FIVE_WORDS)


def parts_of(data: SpeechCommands) -> dict[str, Clips]:
    return {part: getattr(data, part) for part in PARTS}


def assert_whole(data: SpeechCommands, words: tuple[str, ...] = FIVE) -> None:
    """Every clip is where the rule puts it, with its own samples and label."""
    assert data.words == words
    assert sorted(name for clips in parts_of(data).values() for name in clips.names) == sorted(clip_names(words))
    for part, clips in parts_of(data).items():
        assert [which_part(name) for name in clips.names] == [part] * len(clips)
        assert [words[label] for label in clips.labels] == [name.split("/")[0] for name in clips.names]
        assert np.array_equal(clips.waveforms, [noise_of(name) for name in clips.names])
        assert (clips.num_classes, clips.num_samples, clips.sample_rate) == (len(words), 16_000, 16_000)


def test_there_are_35_words_and_five() -> None:
    assert len(WORDS_35) == len(set(WORDS_35)) == 35
    assert tuple(sorted(WORDS_35)) == WORDS_35
    assert FIVE_WORDS == FIVE
    assert set(FIVE_WORDS) <= set(WORDS_35)


def test_a_speaker_is_in_one_part_whatever_the_word_number_and_folder() -> None:
    for part, speakers in SPEAKERS.items():
        for speaker in speakers:
            names = [f"yes/{speaker}_nohash_7.wav", f"{speaker}_nohash_0.wav", f"a/b/{speaker}_nohash_12.flac"]
            assert [which_part(name) for name in names] == [part] * 3
            assert [speaker_of(name) for name in names] == [speaker] * 3


def test_a_tenth_of_the_speakers_each() -> None:
    """Ten thousand speakers: expected 1,000 in each, standard deviation 30. The rule never changes, so nor do these."""
    tally = [which_part(f"{number:08x}_nohash_0.wav") for number in range(10_000)]
    assert (tally.count("validation"), tally.count("test")) == (1060, 960)


def test_the_rule_reproduces_every_line_of_the_official_lists(real_folder: Path) -> None:
    lines = {part: (real_folder / file).read_text().split() for part, file in LISTS.items()}
    assert {part: len(names) for part, names in lines.items()} == {"validation": 9981, "test": 11005}
    assert sorted({name.split("/")[0] for names in lines.values() for name in names}) == list(WORDS_35)
    assert [name for part, names in lines.items() for name in names if which_part(name) != part] == []


def test_the_real_five_words_hold_what_is_published(real_words: SpeechCommands) -> None:
    assert {part: len(clips) for part, clips in parts_of(real_words).items()} == {
        "train": 5666, "validation": 778, "test": 1354,
    }  # fmt: skip
    assert torch.bincount(real_words.train.labels).tolist() == [1337, 1394, 1369, 776, 790]
    assert torch.bincount(real_words.test.labels).tolist() == [179, 167, 187, 406, 415]
    for part, clips in parts_of(real_words).items():
        assert {which_part(name) for name in clips.names} == {part}
        assert clips.waveforms.shape == (len(clips), 16_000)
    loud = np.abs(real_words.test.waveforms.astype(np.int32)).max(1)
    assert np.median(loud) > 3000
    assert set(real_words.noise) == {"doing_the_dishes", "dude_miaowing", "exercise_bike", "running_tap"}
    assert all(len(noise) > 60 * 16_000 for noise in real_words.noise.values())


def test_the_real_files_lack_thirty_words(real_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"holds 5 of the 35 words asked for \(bed, .*, not backward, .*speech-five-w"):
        load_speech_commands(real_folder)


@pytest.mark.parametrize("lists", [True, False])
def test_the_archive_with_and_without_lists(tmp_path: Path, lists: bool) -> None:
    data = load_speech_commands(write_archive(tmp_path / "a", lists=lists), words=FIVE)
    assert_whole(data)
    assert list(data.noise) == ["pink"]
    assert np.array_equal(data.noise["pink"], noise_of("pink", 40_000))


def test_parquet_files(parts: Path) -> None:
    data = load_speech_commands(parts, words=FIVE)
    assert_whole(data)
    assert np.array_equal(data.noise["tap"], noise_of("tap", 40_000))


def test_both_layouts_hold_the_same(tmp_path: Path) -> None:
    one = load_speech_commands(write_archive(tmp_path / "a"), words=FIVE)
    other = load_speech_commands(write_parts(tmp_path / "b"), words=FIVE)
    for clips, same in zip(parts_of(one).values(), parts_of(other).values(), strict=True):
        assert clips.names == same.names
        assert torch.equal(clips.labels, same.labels)
        assert np.array_equal(clips.waveforms, same.waveforms)


def test_all_35_words(tmp_path: Path) -> None:
    assert_whole(load_speech_commands(write_archive(tmp_path / "a", WORDS_35)), WORDS_35)


@pytest.mark.parametrize("layout", ["archive", "parts"])
def test_some_words_in_an_order_of_ones_own(layout: str, request: pytest.FixtureRequest) -> None:
    place: Path = request.getfixturevalue(layout)
    assert_whole(load_speech_commands(place, words=("yes", "bed")), ("yes", "bed"))
    assert_whole(load_speech_commands(place, words=("bed", "yes")), ("bed", "yes"))
    assert_whole(load_speech_commands(place, words=("bed", "cat")), ("bed", "cat"))


def test_the_lists_have_the_last_word(archive: Path) -> None:
    """A whole speaker moved by the lists moves, though the rule puts it elsewhere."""
    moved = SPEAKERS["test"][0]
    lists = {part: (archive / file).read_text().splitlines() for part, file in LISTS.items()}
    for part, file in LISTS.items():
        kept = [name for name in lists[part] if speaker_of(name) != moved]
        extra = [f"{word}/{moved}_nohash_0.wav" for word in FIVE] if part == "validation" else []
        (archive / file).write_text("\n".join(kept + extra))
    data = load_speech_commands(archive, words=FIVE)
    assert moved in {speaker_of(name) for name in data.validation.names}
    assert moved not in {speaker_of(name) for name in data.test.names}


@pytest.mark.parametrize(("kept", "lost"), [tuple(LISTS.values()), tuple(reversed(LISTS.values()))])
def test_one_list_without_the_other(archive: Path, kept: str, lost: str) -> None:
    (archive / lost).unlink()
    with pytest.raises(ValueError, match=rf"speech_commands has no {lost} though it has the other list: unpack"):
        load_speech_commands(archive, words=FIVE)


def test_a_speaker_in_two_parts(archive: Path) -> None:
    path = archive / LISTS["test"]
    path.write_text(path.read_text().replace(f"cat/{SPEAKERS['test'][0]}_nohash_0.wav\n", ""))
    message = (
        r"speaker 0c40e715 is in train \(cat/0c40e715_nohash_0.wav\) and in test \(bed/.*not measure unknown voices"
    )
    with pytest.raises(ValueError, match=message):
        load_speech_commands(archive, words=FIVE)


def test_a_speaker_in_two_parquet_files(parts: Path) -> None:
    write_part(parts / "validation-00000-of-00001.parquet", [f"no/{SPEAKERS['train'][0]}_nohash_3.wav"])
    with pytest.raises(ValueError, match="speaker 00176480 is in train .* and in validation"):
        load_speech_commands(parts, words=FIVE)


def test_short_long_stereo_and_other_rates(archive: Path) -> None:
    full = tone(16_000)
    clips = {
        "bed/00176480_nohash_0.wav": encode_sound(full[:7000]),
        "cat/00176480_nohash_0.wav": encode_sound(tone(25_000)),
        "happy/00176480_nohash_0.wav": encode_sound(np.stack([full, full], 1)),
        "no/00176480_nohash_0.wav": encode_sound(tone(8000, rate=8000), rate=8000),
        "yes/00176480_nohash_0.wav": encode_sound(tone(44_100, rate=44_100), rate=44_100),
    }
    for name, content in clips.items():
        (archive / name).write_bytes(content)
    train = load_speech_commands(archive, words=FIVE).train
    short, long, stereo, slow, fast = (train.waveforms[train.names.index(name)] for name in clips)
    assert np.array_equal(short[:7000], full[:7000])
    assert not short[7000:].any()
    assert np.array_equal(long, full)
    assert np.array_equal(stereo, full)
    for resampled in (slow, fast):
        assert np.abs(resampled[1000:15_000].astype(int) - full[1000:15_000]).max() < 2


@pytest.mark.parametrize(
    "content",
    [b"", b"not a sound", encode_sound(noise_of("cut"))[:-500], None],
    ids=["empty", "text", "cut short", "missing"],
)
def test_damaged_files_are_named_and_refused_or_skipped(archive: Path, content: bytes | None) -> None:
    path = archive / "cat" / "0c40e715_nohash_0.wav"  # on the test list, so that its loss is noticed too
    path.unlink() if content is None else path.write_bytes(content)
    refused = (
        r"cannot use cat/0c40e715_nohash_0.wav of .*speech_commands: it .*\. Fetch the file again or remove it, or"
    )
    with pytest.raises(ValueError, match=refused):
        load_speech_commands(archive, words=FIVE)
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match="left out 1 damaged files of .*: cat/0c40e715_nohash_0.wav: it "):
            data = load_speech_commands(archive, words=FIVE, damaged="skip")
        assert (len(data.train), len(data.validation), len(data.test)) == (10, 10, 9)
        assert np.array_equal(data.test.waveforms, [noise_of(name) for name in data.test.names])
        with pytest.raises(ValueError, match=refused):
            load_speech_commands(archive, words=FIVE)


@pytest.mark.parametrize("content", [None, b"", b"fLaC"])
def test_damaged_rows_of_a_parquet_file(parts: Path, content: bytes | None) -> None:
    names = [name for name in clip_names(FIVE) if which_part(name) == "test"]
    good = [encode_sound(noise_of(name), kind="FLAC") for name in names]
    write_part(parts / "test-00000-of-00001.parquet", names, [*good[:3], content, *good[4:]])
    with pytest.raises(ValueError, match=f"cannot use {names[3]} of .*five_words"):
        load_speech_commands(parts, words=FIVE)
    with pytest.warns(UserWarning, match=f"left out 1 damaged files of .*: {names[3]}: it is no sound"):
        assert len(load_speech_commands(parts, words=FIVE, damaged="skip").test) == 9


def test_damaged_noise(archive: Path) -> None:
    (archive / "_background_noise_" / "white.wav").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot use white.wav of .*_background_noise_: it is no sound"):
        load_speech_commands(archive, words=FIVE)
    with pytest.warns(UserWarning, match="left out 1 damaged files of .*: white.wav"):
        assert list(load_speech_commands(archive, words=FIVE, damaged="skip").noise) == ["pink"]


def test_damaged_parquet_files(parts: Path) -> None:
    path = parts / "validation-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*validation-00000-of-00001\.parquet .*not copied whole"):
        load_speech_commands(parts, words=FIVE)


def test_parquet_files_of_something_else(parts: Path) -> None:
    from hub_files import write_parquet

    write_parquet(parts / "test-00000-of-00001.parquet", [b""], [0])
    with pytest.raises(
        ValueError, match=r"test-.*parquet has another layout: img: struct.*Expected file: string, audio"
    ):
        load_speech_commands(parts, words=FIVE)


def test_a_parquet_row_without_a_word(parts: Path) -> None:
    write_part(parts / "test-00000-of-00001.parquet", ["yes"])
    with pytest.raises(
        ValueError, match=r"row 0 of .*parquet has the file name 'yes', expected <word>/<speaker>_nohash"
    ):
        load_speech_commands(parts, words=FIVE)


@pytest.mark.parametrize("layout", ["archive", "parts"])
def test_words_that_are_not_there(layout: str, request: pytest.FixtureRequest) -> None:
    message = r"holds 2 of the 4 words asked for \(bed, yes\), not tree, zero\. Name a folder with the whole official"
    with pytest.raises(ValueError, match=message):
        load_speech_commands(request.getfixturevalue(layout), words=("bed", "tree", "yes", "zero"))


def test_a_part_without_clips(archive: Path) -> None:
    for name in clip_names(FIVE):
        if which_part(name) == "validation":
            (archive / name).unlink()
    (archive / LISTS["validation"]).write_text("")
    with pytest.raises(ValueError, match="speech_commands has no clip for validation: fetch the data again"):
        load_speech_commands(archive, words=FIVE)


@pytest.mark.parametrize("words", [(), ("bed",), ("bed", "cat", "bed")])
def test_words_must_be_two_different_ones(words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="words must be at least two different ones, got"):
        load_speech_commands(words=words)


def test_what_to_do_with_damaged_files_must_be_known() -> None:
    with pytest.raises(ValueError, match="damaged must be 'refuse' or 'skip', got 'ignore'"):
        load_speech_commands(damaged="ignore")


def test_parts_must_be_alike(archive: Path) -> None:
    data = load_speech_commands(archive, words=FIVE)
    short = Clips(data.test.waveforms[:, :8000], data.test.labels, 5, data.test.names)
    with pytest.raises(
        ValueError, match="test has 5 classes and 8000 samples at 16000 Hz, expected 5, 16000 and 16000"
    ):
        SpeechCommands(data.train, data.validation, short, FIVE, {})
    with pytest.raises(ValueError, match="train has 5 classes .* expected 4, .*one class per word"):
        SpeechCommands(data.train, data.validation, data.test, FIVE[:4], {})
    with pytest.raises(TypeError, match=r"noise 'hum' must be int16 of shape \(S,\), got float64 of shape \(1, 3\)"):
        SpeechCommands(data.train, data.validation, data.test, FIVE, {"hum": np.zeros((1, 3))})  # type: ignore[dict-item]


def test_a_folder_above_will_do(archive: Path) -> None:
    assert find_speech_commands(archive) == find_speech_commands(archive.parent) == archive


def test_the_place_that_has_all_words_goes_first(tmp_path: Path) -> None:
    for place, words in (("five_words", FIVE[:3]), ("speech_commands_v0.02", FIVE)):
        for word in words:
            (tmp_path / place / word).mkdir(parents=True)
            (tmp_path / place / word / "a_nohash_0.wav").touch()
    assert find_speech_commands(tmp_path, FIVE) == tmp_path / "speech_commands_v0.02"
    assert find_speech_commands(tmp_path, FIVE[:2]) == tmp_path / "five_words"
    assert find_speech_commands(tmp_path, (*FIVE, "zero")) == tmp_path / "five_words"  # its error names the word
    for part in ("train", "validation", "test"):  # of parquet files the words are not known before they are read
        (tmp_path / f"{part}-00000.parquet").touch()
    assert find_speech_commands(tmp_path, FIVE) == tmp_path


def test_a_folder_above_the_parquet_files_will_do(parts: Path) -> None:
    for folder in (parts, *list(parts.parents)[:2]):
        assert find_speech_commands(folder) == parts


def test_torchaudios_folder(archive: Path, tmp_path: Path) -> None:
    moved = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    shutil.copytree(archive, moved)
    assert find_speech_commands(tmp_path) == moved


def test_environment_names_the_folder(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHCBL_DATA", str(archive.parent))
    assert find_speech_commands() == archive
    with pytest.raises(
        FileNotFoundError, match="no Speech Commands in the data folder .*nowhere, which is not a folder"
    ):
        find_speech_commands(tmp_path / "nowhere")
    monkeypatch.setenv("TORCHCBL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no Speech Commands in TORCHCBL_DATA = .*: looked for folders of wav"):
        find_speech_commands()


@pytest.fixture
def served(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Serve a small archive in place of the official one."""
    packed = pack(write_archive(tmp_path / "packed"))
    server.content["/speech_commands_v0.02.tar.gz"] = packed
    monkeypatch.setenv("TORCHCBL_SPEECH_COMMANDS_URL", f"{server.base}/speech_commands_v0.02.tar.gz")
    monkeypatch.setattr(speech_folder, "SHA256", hashlib.sha256(packed).hexdigest())
    return packed


def test_downloads_and_unpacks_once(served: bytes, server: WebServer, own_cache: Path) -> None:
    server.drops = [100_000]
    told: list[str] = []
    data = load_speech_commands(words=FIVE, progress=lambda what, done, total: told.append(what))
    assert_whole(data)
    assert [wanted for _, wanted in server.asked] == [None, "bytes=100000-"]
    assert list(dict.fromkeys(told)) == [
        "downloading speech_commands_v0.02.tar.gz",
        "unpacking speech_commands_v0.02.tar.gz",
        "decoding speech_commands_v0.02",
    ]
    assert find_speech_commands() == own_cache / "speech_commands" / "speech_commands_v0.02"
    assert len(server.asked) == 2
    left = [path.name for path in (own_cache / "speech_commands").iterdir() if path.suffix != ".lock"]
    assert left == ["speech_commands_v0.02"]


def test_an_interrupted_download_goes_on_in_the_next_call(served: bytes, server: WebServer) -> None:
    server.drops = [100_000, 0]
    with pytest.raises(DownloadError, match=r"closed after 100,000 of .*goes on from byte 100,000.*--data"):
        find_speech_commands()
    assert_whole(load_speech_commands(words=FIVE))
    assert server.asked[-1][1] == "bytes=100000-"


def test_another_checksum_is_never_unpacked(served: bytes, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech_folder, "SHA256", "0" * 64)
    with pytest.raises(DownloadError, match="arrived with SHA-256 .*, expected 0000.*it was removed"):
        load_speech_commands(words=FIVE)
    assert [path for path in (own_cache / "speech_commands").iterdir() if path.suffix != ".lock"] == []


def test_an_archive_fetched_by_hand_is_unpacked_into_the_cache(
    served: bytes, server: WebServer, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "by_hand"
    folder.mkdir()
    (folder / "speech_commands_v0.02.tar.gz").write_bytes(served)
    assert_whole(load_speech_commands(folder, words=FIVE))
    assert find_speech_commands(folder) == own_cache / "speech_commands" / "speech_commands_v0.02"
    assert [path.name for path in folder.iterdir()] == ["speech_commands_v0.02.tar.gz"]
    assert server.asked == []


def test_a_damaged_archive_fetched_by_hand(served: bytes, tmp_path: Path) -> None:
    (tmp_path / "speech_commands_v0.02.tar.gz").write_bytes(served[:-1])
    with pytest.raises(ValueError, match=r"v0.02.tar.gz \(.* bytes\) has SHA-256 .*, expected .*fetch it again"):
        find_speech_commands(tmp_path)


def test_a_folder_that_only_sounds_like_a_word(tmp_path: Path) -> None:
    (tmp_path / "go" / "src").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no Speech Commands in the data folder"):
        find_speech_commands(tmp_path)


def test_an_unpacking_that_fails_leaves_nothing_half_done(
    served: bytes, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(what: str, done: int, total: int | None, /) -> None:
        if what.startswith("unpacking"):
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        find_speech_commands(progress=full_disk)
    left = [path.name for path in (own_cache / "speech_commands").iterdir() if path.suffix != ".lock"]
    assert left == ["speech_commands_v0.02.tar.gz"]  # so that it need not be fetched again
    assert_whole(load_speech_commands(words=FIVE))


def test_the_published_address_and_checksum() -> None:
    assert speech_folder.URL == "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz"
    assert speech_folder.SHA256 == "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"


def test_without_soundfile(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(ImportError, match=r"pip install 'torchcbl\[audio\]'"):
        load_speech_commands(archive, words=FIVE)
