"""What a recipe may be about: every source of data by name, without loading any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Source:
    """Say what a source of data holds.

    Args:
        noun: What one sample is, for tables: "image" or "clip".
        note: What a reader of a result must know of it; empty for the paper's own data.
        protocol: Seeds and epochs of the paper's protocol, where it has one for this data.
        shape: (C, H, W) of a sample, where every copy has the same.
        classes: Their names, likewise.
        own: Whether it is a folder of the user's own.
    """

    noun: str
    note: str = ""
    protocol: tuple[int, int] | None = None
    shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] = ()
    own: bool = False


SOURCES: Mapping[str, Source] = {
    "digits": Source("image", "on digits (not the paper's data)", None, (1, 8, 8), tuple("0123456789")),
    "cifar10": Source("image", "", (5, 20), (3, 32, 32), CIFAR10_CLASSES),
    "speech-commands": Source("clip", "", (1, 10)),
    "speech-five-words": Source("clip", "five of the 35 words: not comparable with a published 35-word figure"),
    "images": Source("image", "on images of your own", own=True),
    "audio": Source("clip", "on sound of your own", own=True),
}
