from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_files import encode, random_pixels, write_parquet

from torchcbl.lab.data.parquet import read_images
from torchcbl.lab.data.progress import silent


def read(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    return read_images(path, rows=rows, size=(32, 32), num_classes=10, progress=silent)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "part.parquet"


def test_every_image_and_label_in_order(path: Path) -> None:
    pixels, labels = random_pixels(1203, 0), [row % 7 for row in range(1203)]
    write_parquet(path, [encode(image) for image in pixels], labels)
    told: list[tuple[str, int, int | None]] = []
    images, got = read_images(path, rows=1203, size=(32, 32), num_classes=10, progress=lambda *news: told.append(news))
    assert np.array_equal(images, pixels)
    assert got.tolist() == labels
    assert told == [("decoding part.parquet", done, 1203) for done in (500, 1000, 1203)]


@pytest.mark.parametrize("kept", [0, 3, 0.5, 0.99])
def test_truncated(path: Path, kept: float) -> None:
    write_parquet(path, [encode(image) for image in random_pixels(20, 0)], [0] * 20)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if kept < 1 else int(kept)])
    with pytest.raises(ValueError, match=r"cannot read .*part\.parquet .* not copied whole: delete it and fetch"):
        read(path, 20)


def test_damaged_in_the_middle(path: Path) -> None:
    write_parquet(path, [encode(image) for image in random_pixels(20, 0)], [0] * 20)
    whole = bytearray(path.read_bytes())
    whole[4:2000] = bytes(1996)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"part\.parquet.*etch .*again"):
        read(path, 20)


def test_wrong_number_of_rows(path: Path) -> None:
    write_parquet(path, [encode(image) for image in random_pixels(3, 0)], [0] * 3)
    with pytest.raises(ValueError, match=r"part\.parquet holds 3 rows, expected 50,000\. Fetch the file again"):
        read(path, 50_000)


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"image": pa.array([{"bytes": b""}]), "label": pa.array([0])}, "image: struct<bytes: binary>, label: int64"),
        ({"img": pa.array([{"bytes": b""}]), "fine_label": pa.array([0])}, "fine_label: int64"),
        ({"img": pa.array([b""]), "label": pa.array([0])}, "img: binary"),
        ({"img": pa.array([{"path": "a"}]), "label": pa.array([0])}, "img: struct<path: string>"),
        ({"img": pa.array([{"bytes": "a"}]), "label": pa.array([0])}, "img: struct<bytes: string>"),
        ({"img": pa.array([{"bytes": b""}]), "label": pa.array(["cat"])}, "label: string"),
    ],
)
def test_other_columns(path: Path, columns: dict[str, pa.Array], found: str) -> None:
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=rf"part\.parquet has another layout: .*{found}.*Expected img: struct"):
        read(path, 1)


@pytest.mark.parametrize("shape", [(32, 31, 3), (28, 28), (32, 32), (32, 32, 4)])
def test_images_of_another_shape(path: Path, shape: tuple[int, ...]) -> None:
    good = encode(random_pixels(1, 0)[0])
    write_parquet(path, [good, encode(np.zeros(shape, np.uint8))], [0, 0])
    height, width = shape[:2]
    with pytest.raises(ValueError, match=rf"row 1 of .*part\.parquet is an image of shape \({height}, {width}"):
        read(path, 2)


@pytest.mark.parametrize("bad", [None, b"", b"not an image", encode(random_pixels(1, 0)[0])[:500]])
def test_undecodable_image(path: Path, bad: bytes | None) -> None:
    write_parquet(path, [encode(random_pixels(1, 0)[0])] * 2 + [bad], [0] * 3)
    with pytest.raises(ValueError, match=r"row 2 of .*part\.parquet holds no image that can be decoded"):
        read(path, 3)


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(path: Path, label: int) -> None:
    write_parquet(path, [encode(image) for image in random_pixels(3, 0)], [9, label, label])
    with pytest.raises(ValueError, match=rf"row 1 of .*part\.parquet has label {label}, expected 0\.\.9"):
        read(path, 3)


def test_missing_label(path: Path) -> None:
    write_parquet(path, [encode(image) for image in random_pixels(2, 0)], [0, None])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"row 1 of .*part\.parquet has label -1, expected"):
        read(path, 2)
