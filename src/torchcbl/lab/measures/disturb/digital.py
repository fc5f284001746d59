"""Corruptions of colour, compression, resolution and form, after Hendrycks and Dietterich 2019."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from torchcbl.lab.measures.disturb.draws import Pixels, Random, uniform
from torchcbl.lab.measures.disturb.filters import Numbers, sample


def brightness(x: Pixels, randoms: Sequence[Random], more: float) -> Pixels:
    """Raise the value of HSV by `more`; hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    wanted = np.clip(value + more, 0, 1)
    return np.asarray(np.where(value > 0, x * (wanted / np.where(value > 0, value, 1.0)), wanted))


def contrast(x: Pixels, randoms: Sequence[Random], factor: float) -> Pixels:
    """Draw every channel towards its mean over the image: (x - mean) `factor` + mean."""
    mean = x.mean((1, 2), keepdims=True)
    return np.asarray((x - mean) * factor + mean)


def saturate(x: Pixels, randoms: Sequence[Random], factor: float, more: float) -> Pixels:
    """Change the saturation of HSV to s `factor` + `more`; hue and value stay. Grey counts as hue 0, red."""
    value = x.max(-1, keepdims=True)
    chroma = value - x.min(-1, keepdims=True)
    saturation = chroma / np.where(value > 0, value, 1.0)
    wanted = np.clip(saturation * factor + more, 0, 1)
    away = (value - x) / np.where(chroma > 0, chroma, 1.0)  # 0 of the strongest channel, 1 of the weakest
    away = np.where(chroma > 0, away, np.array([0.0, 1.0, 1.0]))
    return np.asarray(value - value * wanted * away)


def jpeg_compression(x: Pixels, randoms: Sequence[Random], quality: int) -> Pixels:
    """Compress as JPEG and read back."""
    return _each_by_pillow(x, lambda image: _through_jpeg(image, quality))


def pixelate(x: Pixels, randoms: Sequence[Random], share: float) -> Pixels:
    """Shrink to `share` of the size and enlarge again, both by averaging over boxes."""
    height, width = x.shape[1:3]
    small = (max(1, int(width * share)), max(1, int(height * share)))
    box = Image.Resampling.BOX
    return _each_by_pillow(x, lambda image: image.resize(small, box).resize((width, height), box))


def elastic_transform(x: Pixels, randoms: Sequence[Random], strength: float, sigma: float, corners: float) -> Pixels:
    """Move three points of the image at random, and every pixel by a smooth random field.

    Args:
        x: Images.
        randoms: Their generators.
        strength: Of the field, as a share of the image's smaller side.
        sigma: Its smoothness, likewise.
        corners: How far the three points move at most in each direction, likewise.
    """
    height, width = x.shape[1:3]
    side = min(height, width)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    moved = uniform(randoms, -corners * side, corners * side, 3, 2)
    fields = uniform(randoms, -1.0, 1.0, 2, height, width)
    smooth = ndimage.gaussian_filter(fields, (0, 0, sigma * side, sigma * side), mode="reflect", truncate=3.0)
    rows, columns = rows + strength * side * smooth[:, 0], columns + strength * side * smooth[:, 1]
    middle, arm = np.array([height // 2, width // 2]), side // 3
    points = middle + arm * np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    back = _affine(points + moved, points)
    places = np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ back
    return sample(x, places[..., 0], places[..., 1])


def _affine(source: Numbers, goal: Numbers) -> Numbers:
    """Find the maps (N, 1, 3, 2) of homogeneous rows and columns that take three points (N, 3, 2) to others."""
    homogeneous = np.concatenate([source, np.ones((*source.shape[:-1], 1))], axis=-1)
    return np.asarray(np.linalg.solve(homogeneous, np.broadcast_to(goal, source.shape)))[:, None]


def _through_jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


def _each_by_pillow(x: Pixels, change: object) -> Pixels:
    assert callable(change)
    images = np.rint(255 * x).astype(np.uint8)
    grey = images.shape[-1] == 1
    changed = [np.asarray(change(Image.fromarray(image[..., 0] if grey else image))) for image in images]
    return np.stack(changed).reshape(x.shape) / 255.0
