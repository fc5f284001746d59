"""Small parquet files in the layout of the hub's CIFAR-10."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ROWS = {"train": 60, "test": 20}


def encode(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def random_pixels(rows: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, 32, 32, 3), dtype=np.uint8)


def write_parquet(path: Path, images: list[bytes | None], labels: list[int]) -> None:
    structs = [{"bytes": image, "path": None} for image in images]
    image_type = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    columns = {"img": pa.array(structs, image_type), "label": pa.array(labels, pa.int64())}
    pq.write_table(pa.table(columns), path)
