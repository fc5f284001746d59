from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from hub_files import encode
from PIL import Image
from sound_files import encode_sound, noise_of, tone

from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.folders import load_audio_folder, load_image_folder, read_image
from torchcbl.lab.data.images import Images

CLASSES = ("ant", "bee", "cow")
PARTS = ("train", "validation", "test")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder that the cache is not in."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def pixels_of(name: str, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    seed = int.from_bytes(name.encode(), "little") % 2**32
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_images(root: Path, count: int = 3) -> list[str]:
    names = [f"{name}/{number}.png" for name in CLASSES for number in range(count)]
    for name in names:
        put(root / name, encode(pixels_of(name)))
    return names


def write_sounds(root: Path, count: int = 3) -> list[str]:
    names = [f"{name}/{number}.wav" for name in CLASSES for number in range(count)]
    for name in names:
        put(root / name, encode_sound(noise_of(name)))
    return names


def test_images_in_one_piece(root: Path) -> None:
    names = write_images(root)
    data = load_image_folder(root, size=8)
    assert data.classes == CLASSES
    assert (data.validation, data.test) == (None, None)
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1), [pixels_of(name) for name in names])
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert data.train.num_classes == 3


def test_sounds_in_one_piece(root: Path) -> None:
    names = write_sounds(root)
    put(root / "ant" / "a.flac", encode_sound(noise_of("flac"), kind="FLAC"))
    data = load_audio_folder(root)
    assert data.classes == CLASSES
    assert (data.validation, data.test) == (None, None)
    assert data.train.names == (*names[:3], "ant/a.flac", *names[3:])
    assert np.array_equal(data.train.waveforms[[0, 3]], [noise_of(names[0]), noise_of("flac")])
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3
    assert isinstance(data.train.waveforms, np.memmap)


@pytest.mark.parametrize("names", [PARTS, ("train", "val", "test"), ("train", None, "test"), ("training", "dev", None)])
def test_parts_of_ones_own(root: Path, names: tuple[str | None, ...]) -> None:
    counts = dict(zip(PARTS, (3, 2, 1), strict=True))
    for part, name in zip(PARTS, names, strict=True):
        if name:
            write_images(root / "images" / name, counts[part])
            write_sounds(root / "sounds" / name, counts[part])
    for data in (load_image_folder(root / "images", size=8), load_audio_folder(root / "sounds")):
        assert data.classes == CLASSES
        for part, name in zip(PARTS, names, strict=True):
            held: Images | Clips | None = getattr(data, part)
            if name is None:
                assert held is None
            else:
                assert held is not None
                assert held.labels.tolist() == sorted([0, 1, 2] * counts[part])
                assert held.num_classes == 3


def test_parts_keep_their_own_files(root: Path) -> None:
    for number, part in enumerate(PARTS):
        for name in ("a", "b"):
            put(root / part / name / "same.wav", encode_sound(np.full(100, number + 1, np.int16)))
    data = load_audio_folder(root, seconds=100 / 16_000)
    for number, part in enumerate(PARTS):
        clips = getattr(data, part)
        assert clips.names == ("a/same.wav", "b/same.wav")
        assert (clips.waveforms == number + 1).all()


def test_a_class_may_be_called_test(root: Path) -> None:
    for name in ("exam", "test", "train"):
        put(root / name / "0.wav", encode_sound(noise_of(name)))
    assert load_audio_folder(root).classes == ("exam", "test", "train")


def test_files_lie_at_any_depth_and_hidden_ones_and_others_are_left_alone(root: Path) -> None:
    write_images(root)
    put(root / "ant" / "deep" / "er" / "x.JPG", encode(pixels_of("x")))
    for hidden in (".DS_Store", "ant/._0.png", "ant/.thumbs/0.png", ".cache/0.png", "readme.txt", "ant/notes.txt"):
        put(root / hidden, b"not an image")
    data = load_image_folder(root, size=8)
    assert data.classes == CLASSES
    assert data.train.labels.tolist() == [0] * 4 + [1] * 3 + [2] * 3


@pytest.mark.parametrize("size", [(6, 10), 7, (16, 16)])
def test_any_size(root: Path, size: tuple[int, int] | int) -> None:
    shapes = [(8, 8), (5, 30), (64, 3), (1, 1)]
    for row, (height, width) in enumerate(shapes):
        put(root / "ab"[row % 2] / f"{row}.png", encode(pixels_of(str(row), height, width)))
    images = load_image_folder(root, size=size).train.images
    assert tuple(images.shape) == (4, 3, *((size, size) if isinstance(size, int) else size))


def test_an_image_of_the_right_size_stays_as_it_is(root: Path) -> None:
    path = put(root / "a.png", encode(pixels_of("wide", 6, 10)))
    assert np.array_equal(read_image(path, (6, 10)), pixels_of("wide", 6, 10))


def test_shrinking_averages(root: Path) -> None:
    """A fine chequerboard becomes grey; picking single pixels would keep it black or white."""
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    small = read_image(put(root / "a.png", encode(board)), (8, 8))
    assert small.shape == (8, 8, 1)
    assert np.abs(small.astype(int) - 127).max() <= 4


def test_grey_images_have_one_channel_unless_one_has_colour(root: Path) -> None:
    for name in ("a/0.png", "b/0.png"):
        put(root / name, encode(pixels_of(name, channels=1)[..., 0]))
    grey = load_image_folder(root, size=8).train.images
    assert np.array_equal(grey[0, 0], pixels_of("a/0.png", channels=1)[..., 0])
    assert tuple(grey.shape) == (2, 1, 8, 8)
    put(root / "b" / "1.png", encode(pixels_of("colour")))
    mixed = load_image_folder(root, size=8).train.images
    assert tuple(mixed.shape) == (3, 3, 8, 8)
    assert np.array_equal(mixed[0], np.repeat(grey[0].numpy(), 3, 0))


def test_sixteen_bits_transparency_palettes_and_turned_photographs(root: Path) -> None:
    deep = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000
    assert np.array_equal(read_image(put(root / "deep.png", encode(deep)), (8, 8))[..., 0], deep >> 8)
    colours = pixels_of("rgba", channels=4)
    assert np.array_equal(read_image(put(root / "rgba.png", encode(colours)), (8, 8)), colours[..., :3])
    stream = io.BytesIO()
    Image.new("P", (8, 8), 3).save(stream, "GIF")
    assert read_image(put(root / "palette.gif", stream.getvalue()), (8, 8)).shape == (8, 8, 3)
    turned, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    Image.fromarray(pixels_of("turned", 8, 8)).save(turned, "PNG", exif=exif)
    expected = np.rot90(pixels_of("turned", 8, 8), -1)
    assert np.array_equal(read_image(put(root / "turned.png", turned.getvalue()), (8, 8)), expected)


@pytest.mark.parametrize(
    "content", [b"", b"not an image", encode(pixels_of("cut"))[:100]], ids=["empty", "text", "cut short"]
)
def test_damaged_images_are_named_and_refused_or_skipped(root: Path, content: bytes) -> None:
    write_images(root)
    put(root / "bee" / "1.png", content)
    for _ in range(2):  # decoded, then from the cache
        with pytest.raises(
            ValueError, match=r"cannot use bee/1.png of .*: it is no image that can be decoded: .*'skip'"
        ):
            load_image_folder(root, size=8)
        with pytest.warns(UserWarning, match="left out 1 damaged files of .*: bee/1.png: it is no image"):
            data = load_image_folder(root, size=8, damaged="skip")
        assert data.train.labels.tolist() == [0] * 3 + [1] * 2 + [2] * 3
        assert np.array_equal(data.train.images[4].permute(1, 2, 0), pixels_of("bee/2.png"))


def test_damaged_sounds_are_named_and_refused_or_skipped(root: Path) -> None:
    write_sounds(root)
    put(root / "bee" / "1.wav", encode_sound(noise_of("cut"))[:-10])
    with pytest.raises(ValueError, match=r"cannot use bee/1.wav of .*: it was cut short: .*damaged='skip'"):
        load_audio_folder(root)
    with pytest.warns(UserWarning, match="left out 1 damaged files of .*: bee/1.wav: it was cut short"):
        data = load_audio_folder(root, damaged="skip")
    assert data.train.labels.tolist() == [0] * 3 + [1] * 2 + [2] * 3
    assert data.train.names[4] == "bee/2.wav"


def test_a_class_of_damaged_files_only(root: Path) -> None:
    write_images(root / "images")
    write_sounds(root / "sounds")
    for number in range(3):
        put(root / "images" / "cow" / f"{number}.png", b"")
        put(root / "sounds" / "cow" / f"{number}.wav", b"")
    message = r"no file of class cow in .* \(train\) can be decoded"
    with pytest.warns(UserWarning, match="left out 3"), pytest.raises(ValueError, match=message):
        load_image_folder(root / "images", size=8, damaged="skip")
    with pytest.warns(UserWarning, match="left out 3"), pytest.raises(ValueError, match=message):
        load_audio_folder(root / "sounds", damaged="skip")


def test_any_length_and_rate(root: Path) -> None:
    put(root / "a" / "short.wav", encode_sound(tone(3000)))
    put(root / "b" / "fast.wav", encode_sound(tone(88_200, rate=44_100), rate=44_100))
    clips = load_audio_folder(root, seconds=0.5).train
    assert (clips.num_samples, clips.sample_rate, clips.seconds) == (8000, 16_000, 0.5)
    assert np.array_equal(clips.waveforms[0, :3000], tone(3000))
    assert not clips.waveforms[0, 3000:].any()
    assert np.abs(clips.waveforms[1, 1000:7000].astype(int) - tone(8000)[1000:7000]).max() < 2


def test_images_are_decoded_once_for_each_size(root: Path) -> None:
    write_images(root)
    told: list[tuple[str, int, int | None]] = []

    def load(size: int) -> Images:
        return load_image_folder(root, size=size, progress=lambda *news: told.append(news)).train

    for size in (8, 4, 8, 4):
        assert load(size).images.shape[-1] == size
    assert told == [("decoding own", 9, 9)] * 2
    put(root / "ant" / "0.png", encode(pixels_of("changed", 9, 9)))
    load(8)
    assert len(told) == 3
    (root / "ant" / "0.png").unlink()
    assert len(load(8)) == 8


def test_a_changed_sound_is_read_anew(root: Path) -> None:
    write_sounds(root)
    load_audio_folder(root)
    put(root / "ant" / "0.wav", encode_sound(noise_of("changed", 9000)))
    assert np.array_equal(load_audio_folder(root).train.waveforms[0, :9000], noise_of("changed", 9000))


def test_folders_that_are_not_laid_out_so(root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="the data folder .*nowhere is not a folder: name one that holds"):
        load_image_folder(root / "nowhere", size=8)
    put(root / "flat" / "0.png", encode(pixels_of("a")))
    with pytest.raises(ValueError, match=r"flat holds 0 folders with files that end in \.bmp, .*at least two classes"):
        load_image_folder(root / "flat", size=8)
    put(root / "one" / "a" / "0.wav", encode_sound(noise_of("a")))
    with pytest.raises(
        ValueError, match=r"one holds 1 folders with files that end in \.flac, \.wav, expected one folder"
    ):
        load_audio_folder(root / "one")
    put(root / "one" / "b" / "0.mp3", b"")
    with pytest.raises(ValueError, match=r"b holds no file that ends in \.flac, \.wav: fill it, or remove it"):
        load_audio_folder(root / "one")


def test_a_name_that_is_not_utf_8(root: Path) -> None:
    write_images(root)
    try:
        put(root / CLASSES[0] / os.fsdecode(b"caf\xe9.png"), encode(pixels_of("e")))
    except OSError:
        pytest.skip("this file system takes no such names")
    with pytest.raises(ValueError, match=r"the name of '.*caf\\udce9\.png' is not UTF-8: rename it"):
        load_image_folder(root, size=8)


def test_parts_that_are_not_laid_out_so(root: Path) -> None:
    write_sounds(root / "test")
    with pytest.raises(ValueError, match="has the folders test, expected train, and validation or test or both"):
        load_audio_folder(root)
    write_sounds(root / "train")
    write_sounds(root / "extra")
    with pytest.raises(ValueError, match="has the folders extra, test, train, expected .*no other folder beside"):
        load_audio_folder(root)
    (root / "extra").rename(root / "val")
    write_sounds(root / "validation")
    with pytest.raises(ValueError, match="has the folders test, train, val, validation, expected .*each once"):
        load_audio_folder(root)


def test_a_class_that_train_lacks(root: Path) -> None:
    write_sounds(root / "train")
    write_sounds(root / "test")
    put(root / "test" / "dog" / "0.wav", encode_sound(noise_of("dog")))
    with pytest.raises(ValueError, match="dog is a class that train lacks: there are ant, bee, cow"):
        load_audio_folder(root)


def test_arguments_out_of_range(root: Path) -> None:
    with pytest.raises(ValueError, match=r"size must be positive, got \(8, 0\): give \(H, W\) in pixels"):
        load_image_folder(root, size=(8, 0))
    with pytest.raises(ValueError, match="seconds must be positive, got 0: give the length of a clip"):
        load_audio_folder(root, seconds=0)
    with pytest.raises(ValueError, match="damaged must be 'refuse' or 'skip', got 'drop'"):
        load_image_folder(root, size=8, damaged="drop")
    write_sounds(root)
    with pytest.raises(ValueError, match="damaged must be 'refuse' or 'skip', got 'drop'"):
        load_audio_folder(root, damaged="drop")
