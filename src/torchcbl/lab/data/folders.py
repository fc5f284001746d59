"""Images and sound from users' own folders: one folder per class."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from torchcbl.lab.data.cache import Arrays, decoded
from torchcbl.lab.data.class_folders import ClassFile, ClassFolders, FolderParts, list_class_folders
from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.damage import check_damaged, refusal, tell_skipped
from torchcbl.lab.data.images import Images
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.data.sound import SAMPLE_RATE
from torchcbl.lab.data.waveforms import Encoded, Job, decoded_waveforms

IMAGES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
SOUND = frozenset({".flac", ".wav"})
TELL_EVERY = 100


def load_image_folder(
    folder: Path, *, size: tuple[int, int] | int, damaged: str = "refuse", progress: Progress = silent
) -> FolderParts[Images]:
    """Load `<folder>/<class>/*.png` (or jpg, webp, bmp, gif, tif, ppm, pgm), resized to one size.

    An image is turned upright (EXIF) and stretched to the size, with a filter that averages what it shrinks. Where all
    images are grey there is one channel, else three; transparency is dropped, of 16 bits the upper eight are kept, and
    of a moving picture the first frame. The resized images are kept in the cache, never beside the files.

    Args:
        folder: Holds one folder per class; or `train`, `validation` (or `val`) and `test`, which do.
        size: (H, W) of the answer, or one number for both.
        damaged: What to do with a file that cannot be decoded: "refuse" raises, "skip" leaves it out with a warning.
        progress: Called every hundred images.

    Returns:
        The folder's own parts, or everything as `train`; classes sorted by name, files too.

    Raises:
        FileNotFoundError: `folder` is not a folder.
        ValueError: A file is damaged, or the folder is not laid out as described.
    """
    check_damaged(damaged)
    height_width = (size, size) if isinstance(size, int) else size
    if min(height_width) < 1:
        raise ValueError(f"size must be positive, got {size}: give (H, W) in pixels")
    listed = list_class_folders(folder, IMAGES)

    def decode() -> Arrays:
        return _decode_images(listed, height_width, damaged, progress)

    arrays = decoded(listed.root, decode, variant="x".join(map(str, height_width)), stamp=listed.stamp)
    tell_skipped(json.loads(arrays["skipped"].tobytes()), listed.root, damaged)
    rows = [listed.files[index] for index in arrays["rows"]]
    images = torch.from_numpy(arrays["images"]).permute(0, 3, 1, 2)
    labels = _labels(listed, rows)
    parts = {part: Images(images[chosen], labels[chosen], len(listed.classes)) for part, chosen in _parts(listed, rows)}
    return FolderParts(parts["train"], parts.get("validation"), parts.get("test"), listed.classes)


def load_audio_folder(
    folder: Path, *, seconds: float = 1.0, damaged: str = "refuse", progress: Progress = silent
) -> FolderParts[Clips]:
    """Load `<folder>/<class>/*.wav` (or flac) as clips of one length, at 16 kHz and with one channel.

    Longer sounds are cropped, shorter ones padded with silence at the end. They are decoded once, into a memory-mapped
    file in the cache.

    Args:
        folder: Holds one folder per class; or `train`, `validation` (or `val`) and `test`, which do.
        seconds: The length of every clip, > 0.
        damaged: What to do with a file that cannot be decoded: "refuse" raises, "skip" leaves it out with a warning.
        progress: Called every few hundred clips.

    Returns:
        The folder's own parts, or everything as `train`; classes sorted by name, files too.

    Raises:
        FileNotFoundError: `folder` is not a folder.
        ValueError: A file is damaged, or the folder is not laid out as described.
        ImportError: soundfile or soxr is not installed.
    """
    num_samples = round(seconds * SAMPLE_RATE)
    if num_samples < 1:
        raise ValueError(f"seconds must be positive, got {seconds}: give the length of a clip")
    listed = list_class_folders(folder, SOUND)
    files = {f"{file.part}/{file.name}": file for file in listed.files}

    def encoded() -> Iterator[Encoded]:
        return (Encoded(file.name, file.part, file.path) for file in listed.files)

    job = Job(listed.root, "folder", listed.stamp, encoded, len(files), num_samples, damaged)
    waveforms, listing = decoded_waveforms(job, progress)
    rows = [files[f"{part}/{name}"] for part, name in zip(listing.parts, listing.names, strict=True)]
    labels, names = _labels(listed, rows), tuple(listing.names)
    parts = {
        part: Clips(waveforms[chosen], labels[chosen], len(listed.classes), names[chosen], SAMPLE_RATE)
        for part, chosen in _parts(listed, rows)
    }
    return FolderParts(parts["train"], parts.get("validation"), parts.get("test"), listed.classes)


def _labels(listed: ClassFolders, rows: list[ClassFile]) -> torch.Tensor:
    return torch.tensor([listed.classes.index(row.class_name) for row in rows])


def _parts(listed: ClassFolders, rows: list[ClassFile]) -> Iterator[tuple[str, slice]]:
    """Find each part's rows, which follow each other; nothing that had files may be left without."""
    left = {(row.part, row.class_name) for row in rows}
    for file in listed.files:
        if (file.part, file.class_name) not in left:
            raise ValueError(
                f"no file of class {file.class_name} in {listed.root} ({file.part}) can be decoded: fetch them again, "
                "or remove the class"
            )
    for part in dict.fromkeys(row.part for row in rows):
        members = [index for index, row in enumerate(rows) if row.part == part]
        yield part, slice(members[0], members[-1] + 1)


def _decode_images(listed: ClassFolders, size: tuple[int, int], damaged: str, progress: Progress) -> Arrays:
    images, rows, skipped = [], [], []
    for index, file in enumerate(listed.files):
        try:
            images.append(read_image(file.path, size))
            rows.append(index)
        except ValueError as error:
            if damaged == "refuse":
                raise refusal(file.name, listed.root, str(error)) from error
            skipped.append(f"{file.name}: {error}")
        if (index + 1) % TELL_EVERY == 0 or index + 1 == len(listed.files):
            progress(f"decoding {listed.root.name}", index + 1, len(listed.files))
    channels = max((image.shape[2] for image in images), default=1)
    pixels = np.empty((len(images), *size, channels), np.uint8)
    for position, image in enumerate(images):
        pixels[position] = image
    told = np.frombuffer(json.dumps(skipped).encode(), np.uint8)
    return {"images": pixels, "rows": np.array(rows, np.int64), "skipped": told}


def read_image(path: Path, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode an image file and stretch it to (H, W).

    Returns:
        uint8, shape (H, W, 1) where the file is grey, else (H, W, 3).

    Raises:
        ValueError: The file cannot be decoded whole; the message says why, not which file.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey, which Pillow would clip to eight
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            grey = image.mode in ("1", "L", "LA")
            resized = image.convert("L" if grey else "RGB").resize(size[::-1], Image.Resampling.BILINEAR)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no image that can be decoded: {error}") from error
    return np.asarray(resized).reshape(*size, -1)
