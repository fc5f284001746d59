"""Images out of a parquet file in the Hugging Face hub's layout."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from torchcbl.lab.data.progress import Progress

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CHUNK = 500


def read_images(
    path: Path, *, rows: int, size: tuple[int, int], num_classes: int, progress: Progress
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Decode every RGB image of a file with the columns `img` = {bytes, path} and `label`.

    One thread: on images this small the interpreter's lock costs a pool as much as it gains.

    Args:
        path: The file.
        rows: Images it must hold.
        size: (H, W) each must have.
        num_classes: Labels must lie in 0..num_classes-1.
        progress: Called after every few hundred images.

    Returns:
        Images, uint8, (rows, H, W, 3), and labels, int64, (rows,), in the file's order.

    Raises:
        ValueError: The file is damaged, or its columns, rows, images or labels are not as described;
            the message names the file, what was found, and what to do.
    """
    images = np.empty((rows, *size, 3), np.uint8)
    labels = np.empty(rows, np.int64)
    done = 0
    for encoded, some_labels in _chunks(path, rows):
        for offset, image in enumerate(encoded):
            images[done + offset] = _decode(image, size, where=f"row {done + offset} of {path}")
        labels[done : done + len(encoded)] = some_labels
        done += len(encoded)
        progress(f"decoding {path.name}", done, rows)
    _check_labels(labels, num_classes, path)
    return images, labels


def _chunks(path: Path, rows: int) -> Iterator[tuple[list[bytes | None], NDArray[np.int64]]]:
    with opened(path) as file:
        _check_layout(file, path, rows)
        for batch in file.iter_batches(CHUNK, columns=["img", "label"]):
            labels = batch.column("label").fill_null(-1).to_numpy()  # -1: the hub's mark of no label
            yield batch.column("img").field("bytes").to_pylist(), labels


@contextlib.contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """Open a parquet file; whatever its reader stumbles over becomes a ValueError that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield file
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"cannot read {path} ({path.stat().st_size:,} bytes), it is damaged or was not copied whole: "
            f"delete it and fetch it again. The reader said: {error}"
        ) from error


def _check_layout(file: pq.ParquetFile, path: Path, rows: int) -> None:
    schema = file.schema_arrow
    if not _has_layout(schema):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise _unexpected(
            f"{path} has another layout: {columns}. Expected img: struct<bytes: binary, ...>, label: int64"
        )
    if file.metadata.num_rows != rows:
        raise _unexpected(f"{path} holds {file.metadata.num_rows:,} rows, expected {rows:,}")


def _has_layout(schema: pa.Schema) -> bool:
    import pyarrow as pa

    if not {"img", "label"} <= set(schema.names) or not pa.types.is_signed_integer(schema.field("label").type):
        return False
    image = schema.field("img").type
    fields = list(image) if pa.types.is_struct(image) else []
    return any(field.name == "bytes" and field.type in (pa.binary(), pa.large_binary()) for field in fields)


def _decode(encoded: bytes | None, size: tuple[int, int], where: str) -> NDArray[np.uint8]:
    from PIL import Image

    try:
        image = np.asarray(Image.open(io.BytesIO(encoded or b"")))
    except (OSError, SyntaxError, ValueError) as error:
        raise _unexpected(f"{where} holds no image that can be decoded ({error})") from error
    if image.shape != (*size, 3) or image.dtype != np.uint8:
        raise _unexpected(
            f"{where} is an image of shape {image.shape} and type {image.dtype}, expected {(*size, 3)} and uint8"
        )
    return image


def _check_labels(labels: NDArray[np.int64], num_classes: int, path: Path) -> None:
    outside = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(outside):
        raise _unexpected(f"row {outside[0]} of {path} has label {labels[outside[0]]}, expected 0..{num_classes - 1}")


def _unexpected(found: str) -> ValueError:
    return ValueError(f"{found}. Fetch the file again, or choose another folder with --data")
