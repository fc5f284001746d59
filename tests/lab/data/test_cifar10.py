from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_files import ROWS, encode, random_pixels, write_parquet
from web_server import WebServer

from torchcbl.lab.data.cifar10 import DATASET, FILES, find_cifar10, load_cifar10
from torchcbl.lab.data.download import DownloadError
from torchcbl.lab.data.images import Images, channel_statistics
from torchcbl.lab.data.splits import split_dataset


def test_images_and_labels_in_the_files_order(small_cifar: Path) -> None:
    train, test = load_cifar10(small_cifar, rows=ROWS)
    for part, seed in ((train, 0), (test, 1)):
        expected = random_pixels(len(part), seed).transpose(0, 3, 1, 2)
        assert np.array_equal(part.images.numpy(), expected)
        assert part.labels.tolist() == [row % 10 for row in range(len(part))]
    assert (len(train), len(test), train.num_classes) == (60, 20, 10)


def test_the_second_time_comes_from_the_cache(small_cifar: Path, own_cache: Path) -> None:
    told: list[str] = []
    first, _ = load_cifar10(small_cifar, rows=ROWS, progress=lambda what, done, total: told.append(what))
    assert sorted(set(told)) == sorted(f"decoding {file}" for file in FILES.values())
    told.clear()
    second, _ = load_cifar10(small_cifar, rows=ROWS, progress=lambda what, done, total: told.append(what))
    assert told == []
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.labels, second.labels)
    assert len(list((own_cache / "decoded").glob("*.arrays"))) == 2
    assert sorted(path.name for path in small_cifar.iterdir()) == sorted(FILES.values())


def test_a_changed_file_is_read_anew(small_cifar: Path) -> None:
    load_cifar10(small_cifar, rows=ROWS)
    pixels = random_pixels(20, 7)
    write_parquet(small_cifar / FILES["test"], [encode(image) for image in pixels], [3] * 20)
    _, test = load_cifar10(small_cifar, rows=ROWS)
    assert np.array_equal(test.images.numpy(), pixels.transpose(0, 3, 1, 2))
    assert test.labels.tolist() == [3] * 20


@pytest.mark.parametrize("level", [0, 1, 2])
def test_a_folder_above_will_do(small_cifar: Path, level: int) -> None:
    assert find_cifar10([small_cifar, *small_cifar.parents][level]) == small_cifar


def test_files_directly_in_a_folder_named_cifar10(small_cifar: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "cifar10"
    shutil.copytree(small_cifar, moved)
    assert find_cifar10(moved.parent) == moved


def test_environment_names_the_folder_and_an_argument_overrides_it(
    small_cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHCBL_DATA", str(small_cifar.parents[1]))
    assert find_cifar10() == small_cifar
    with pytest.raises(FileNotFoundError, match="nowhere"):
        find_cifar10(tmp_path / "nowhere")


def test_missing_folder_is_never_a_download(tmp_path: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHCBL_HUB", server.base)
    message = r"no CIFAR-10 in the data folder .*nowhere, which is not a folder: looked for train-.*test-.*--data"
    with pytest.raises(FileNotFoundError, match=message):
        find_cifar10(tmp_path / "nowhere")
    monkeypatch.setenv("TORCHCBL_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"no CIFAR-10 in TORCHCBL_DATA = .*: looked for train-00000"):
        find_cifar10()
    assert server.asked == []


@pytest.mark.parametrize("part", ["train", "test"])
def test_half_of_it(small_cifar: Path, part: str) -> None:
    (small_cifar / FILES[part]).unlink()
    with pytest.raises(FileNotFoundError, match=rf"plain_text holds only half of CIFAR-10: add {FILES[part]}"):
        find_cifar10(small_cifar.parent)


def test_an_excerpt_is_not_cifar10(small_cifar: Path) -> None:
    with pytest.raises(ValueError, match=r"train-00000-of-00001\.parquet holds 60 rows, expected 50,000"):
        load_cifar10(small_cifar)


def test_a_truncated_file_is_named(small_cifar: Path) -> None:
    path = small_cifar / FILES["test"]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot read .*test-00000-of-00001\.parquet"):
        load_cifar10(small_cifar, rows=ROWS)


def test_downloads_once_into_the_cache(
    small_cifar: Path, own_cache: Path, server: WebServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.content = {f"/{DATASET}/{file}": (small_cifar / file).read_bytes() for file in FILES.values()}
    server.drops = [1000]
    monkeypatch.setenv("TORCHCBL_HUB", f"{server.base}/")
    train, test = load_cifar10(rows=ROWS)
    assert np.array_equal(train.images.numpy(), random_pixels(60, 0).transpose(0, 3, 1, 2))
    assert len(test) == 20
    asked = len(server.asked)
    assert find_cifar10() == own_cache / "cifar10" / "plain_text"
    assert len(server.asked) == asked == 3


def test_no_connection_says_how_to_get_the_data(server: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHCBL_HUB", server.base)
    with pytest.raises(DownloadError, match=rf"could not download {server.base}/datasets/uoft-cs/cifar10.*--data"):
        load_cifar10()


def test_the_real_files_hold_what_is_published(real_cifar: tuple[Images, Images]) -> None:
    train, test = real_cifar
    assert (tuple(train.images.shape), tuple(test.images.shape)) == ((50_000, 3, 32, 32), (10_000, 3, 32, 32))
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    mean, std = channel_statistics(train.images)
    assert mean == pytest.approx((0.49140, 0.48216, 0.44653), abs=5e-6)
    assert std == pytest.approx((0.24703, 0.24349, 0.26159), abs=5e-6)


def test_the_real_split_is_the_papers(real_cifar: tuple[Images, Images]) -> None:
    train, test = real_cifar
    data = split_dataset(train, test, validation_size=5000)
    assert (len(data.train), len(data.validation), len(data.test)) == (45_000, 5000, 10_000)
    assert torch.bincount(data.train.labels).tolist() == [4500] * 10
    assert torch.bincount(data.validation.labels).tolist() == [500] * 10
    assert data.image_shape == (3, 32, 32)
