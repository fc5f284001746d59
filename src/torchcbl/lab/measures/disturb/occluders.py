"""Occluders, which hide a part of an image, and clutter, which adds parts of images of other classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchcbl.lab.measures.disturb.draws import Random, randoms

Raw = NDArray[np.uint8]
"""Images, (N, H, W, C)."""
SHARES = (10, 20, 30, 40, 50, 60)
_CELLS = 4


@dataclass(frozen=True)
class Crowd:
    """Whence clutter is taken: the whole test part.

    Args:
        pixels: (M, H, W, C).
        labels: (M,).
    """

    pixels: Raw
    labels: NDArray[np.int64]

    def distractor(self, random: Random, label: int) -> Raw:
        """Draw an image (H, W, C) of another class than `label`."""
        others = np.flatnonzero(self.labels != label)
        found: Raw = self.pixels[others[random.randint(len(others))]]
        return found


@dataclass(frozen=True)
class Occlusion:
    """A way to hide or clutter images.

    Args:
        name: Its name.
        group: "occlusion" or "clutter".
        apply: Called with an image (H, W, C), its class, the share in [0, 1], its generator and the crowd.
        shares: Its grades, in per cent: of the area that is covered, or of the weight that the distractor has.
    """

    name: str
    group: str
    apply: Callable[[Raw, int, float, Random, Crowd], Raw]
    shares: tuple[int, ...] = SHARES


def grey_square(image: Raw, label: int, share: float, random: Random, crowd: Crowd) -> Raw:
    """Put a square of middle grey at a random place inside the image."""
    return _covered(image, share, random, lambda shape: np.full(shape, 128, np.uint8))


def noise_square(image: Raw, label: int, share: float, random: Random, crowd: Crowd) -> Raw:
    """Put a square of uniform noise at a random place inside the image."""
    return _covered(image, share, random, lambda shape: random.randint(0, 256, shape).astype(np.uint8))


def border_patches(image: Raw, label: int, share: float, random: Random, crowd: Crowd) -> Raw:
    """Paste cells of images of other classes over cells of the border, on a grid of 4 x 4; the inner four stay.

    Each cell is cut from the same place of its image; `share` of the sixteen cells, rounded, are pasted over.
    """
    height, width, _ = image.shape
    edge = [cell for cell in np.ndindex(_CELLS, _CELLS) if min(cell) == 0 or max(cell) == _CELLS - 1]
    image = image.copy()
    for place in random.permutation(len(edge))[: min(len(edge), round(share * _CELLS**2))]:
        row, column = edge[place]
        rows = slice(row * height // _CELLS, (row + 1) * height // _CELLS)
        columns = slice(column * width // _CELLS, (column + 1) * width // _CELLS)
        image[rows, columns] = crowd.distractor(random, label)[rows, columns]
    return image


def inset(image: Raw, label: int, share: float, random: Random, crowd: Crowd) -> Raw:
    """Lay a whole image of another class, shrunk to `share` of the area, into one of the four corners."""
    height, width, channels = image.shape
    rows, columns = max(1, round(height * math.sqrt(share))), max(1, round(width * math.sqrt(share)))
    other = crowd.distractor(random, label)
    small = Image.fromarray(other[..., 0] if channels == 1 else other).resize((columns, rows), Image.Resampling.BOX)
    top, left = random.randint(2) * (height - rows), random.randint(2) * (width - columns)
    image = image.copy()
    image[top : top + rows, left : left + columns] = np.asarray(small).reshape(rows, columns, channels)
    return image


def mixed(image: Raw, label: int, share: float, random: Random, crowd: Crowd) -> Raw:
    """Let an image of another class shine through: (1 - a) x + a x', `share` being a."""
    other = crowd.distractor(random, label)
    return np.rint((1 - share) * image + share * other.astype(np.float64)).astype(np.uint8)


def _covered(image: Raw, share: float, random: Random, paint: Callable[[tuple[int, ...]], Raw]) -> Raw:
    height, width, channels = image.shape
    side = math.sqrt(share * height * width)
    rows, columns = min(height, round(side)), min(width, round(side))
    top, left = random.randint(height - rows + 1), random.randint(width - columns + 1)
    image = image.copy()
    image[top : top + rows, left : left + columns] = paint((rows, columns, channels))
    return image


_ALL = (
    Occlusion("grey_square", "occlusion", grey_square),
    Occlusion("noise_square", "occlusion", noise_square),
    Occlusion("border_patches", "clutter", border_patches),
    Occlusion("inset", "clutter", inset, (10, 20, 30, 40, 50)),
    Occlusion("mixed", "clutter", mixed, (10, 20, 30, 40, 45)),
)
OCCLUSIONS = {occlusion.name: occlusion for occlusion in _ALL}


def occlude(
    pixels: Raw,
    labels: NDArray[np.int64],
    name: str,
    share: int,
    indices: Sequence[int] | NDArray[np.int64],
    crowd: Crowd,
) -> Raw:
    """Hide or clutter images; the same image comes out the same, whatever batch it is in.

    Args:
        pixels: (N, H, W, C), C being 1 or 3.
        labels: (N,).
        name: One of `OCCLUSIONS`.
        share: One of its grades, in per cent.
        indices: Which images of the test part they are, (N,).
        crowd: Whence distractors come.

    Returns:
        (N, H, W, C).

    Raises:
        ValueError: The name or the share is unknown.
    """
    if name not in OCCLUSIONS or share not in OCCLUSIONS[name].shares:
        known = ", ".join(f"{one.name} {one.shares}" for one in OCCLUSIONS.values())
        raise ValueError(f"no occlusion '{name}' of {share}%: there are {known}.")
    generators = randoms(name, share, indices)
    apply = OCCLUSIONS[name].apply
    rows = zip(pixels, labels, generators, strict=True)
    return np.stack([apply(image, int(label), share / 100, random, crowd) for image, label, random in rows])
