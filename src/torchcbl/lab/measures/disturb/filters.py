"""What corruptions are made of: blurs, shifts, resampling, and fractal clouds, on whole batches."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from torchcbl.lab.measures.disturb.draws import Pixels

Numbers = NDArray[np.float64]


def gaussian(x: Pixels, sigma: float) -> Pixels:
    """Blur each channel by a Gaussian of `sigma` pixels, cut off at 4 sigma; the border is repeated."""
    return np.asarray(ndimage.gaussian_filter(x, (0, sigma, sigma, 0), mode="nearest"))


def disk(radius: float, sigma: float) -> Numbers:
    """Make the point spread of a lens out of focus: a disk of `radius`, smoothed by a Gaussian of 3 x 3 pixels.

    Example:
        >>> disk(0.3, 0.4).shape, round(float(disk(1.5, 0.1).sum()), 6)
        ((5, 5), 1.0)
    """
    reach = math.ceil(radius)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (rows**2 + columns**2 <= radius**2).astype(np.float64)
    line = np.exp(-(np.arange(-1, 2) ** 2) / (2 * sigma**2))
    smooth = np.outer(line, line) / line.sum() ** 2
    padded = np.pad(kernel / kernel.sum(), 1)
    return np.asarray(ndimage.convolve(padded, smooth, mode="constant"))


def smear(x: Pixels, radius: float, sigma: float, degrees: Numbers) -> Pixels:
    """Blur along a line: weights exp(-k^2 / (2 sigma^2)), k = 0..2 radius, on the pixels k steps away, one way only.

    Args:
        x: Images.
        radius: Half the line's length.
        sigma: Of the weights, in pixels.
        degrees: Each image's direction, (N,).

    Returns:
        The images; the border is repeated.
    """
    weights = np.exp(-(np.arange(2 * round(radius) + 1) ** 2) / (2 * sigma**2))
    weights = weights[weights > 1e-3]
    angle, total = np.deg2rad(degrees), np.zeros_like(x)
    for step, weight in enumerate(weights / weights.sum()):
        total += weight * _shifted(x, np.rint(step * np.sin(angle)), np.rint(step * np.cos(angle)))
    return total


def _shifted(x: Pixels, down: Numbers, right: Numbers) -> Pixels:
    """Look each pixel up so many whole pixels further down and to the right."""
    count, height, width, _ = x.shape
    rows = np.clip(np.arange(height) + down[:, None].astype(int), 0, height - 1)
    columns = np.clip(np.arange(width) + right[:, None].astype(int), 0, width - 1)
    return np.asarray(x[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]])


def sample(x: Pixels, rows: Numbers, columns: Numbers) -> Pixels:
    """Look images up between their pixels, bilinearly; beyond the border they are mirrored.

    Args:
        x: Images (N, H, W, C).
        rows: Where to look, (N, H, W) or what broadcasts to it, in pixels from the first row.
        columns: Likewise from the first column.
    """
    count, height, width, _ = x.shape
    rows, columns = np.broadcast_arrays(_mirrored(rows, height), _mirrored(columns, width))
    above, left = np.floor(rows).astype(int), np.floor(columns).astype(int)
    below, right = np.minimum(above + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (rows - above)[..., None], (columns - left)[..., None]
    image = np.arange(count)[:, None, None]
    upper = x[image, above, left] * (1 - across) + x[image, above, right] * across
    lower = x[image, below, left] * (1 - across) + x[image, below, right] * across
    return np.asarray(upper * (1 - down) + lower * down)


def _mirrored(place: Numbers, size: int) -> Numbers:
    """Fold coordinates into 0..size - 1, as between two mirrors on the border pixels."""
    if size == 1:
        return np.zeros_like(place)
    period = 2.0 * (size - 1)
    folded = np.mod(place, period)
    return np.asarray(np.minimum(folded, period - folded))


def zoom(x: Pixels, factor: float) -> Pixels:
    """Enlarge images about their centres, bilinearly, and crop them back to their size; `factor` is at least 1."""
    _, height, width, _ = x.shape
    rows, columns = (((np.arange(size) - (size - 1) / 2) / factor + (size - 1) / 2) for size in (height, width))
    return sample(x, rows[None, :, None], columns[None, None, :])


def side_of(height: int, width: int) -> int:
    """Return the side of a square of clouds that covers an image: the next power of two."""
    return 1 << max(1, (max(height, width) - 1).bit_length())


def clouds(noise: Numbers, decay: float) -> Numbers:
    """Make fractal clouds by midpoint displacement (diamond-square: Fournier, Fussell and Carpenter 1982).

    Each new point is the mean of its four neighbours plus noise, the noise `decay` squared times less with every
    halving of the grid, whose edges are joined.

    Args:
        noise: Uniform in [-1, 1], (N, S, S) with S a power of two: the noise of each point.
        decay: Above 1; the larger, the smoother.

    Returns:
        (N, S, S), each from 0 to 1.
    """
    size = noise.shape[1]
    field = np.zeros_like(noise)
    step, strength = size, 1.0
    while step >= 2:
        half = step // 2
        corners = field[:, ::step, ::step]
        pairs = corners + np.roll(corners, -1, axis=1)
        squares = (pairs + np.roll(pairs, -1, axis=2)) / 4
        middles = squares + strength * noise[:, half::step, half::step]
        field[:, half::step, half::step] = middles
        across = (middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=2)) / 4
        down = (middles + np.roll(middles, 1, axis=2) + corners + np.roll(corners, -1, axis=1)) / 4
        field[:, ::step, half::step] = across + strength * noise[:, ::step, half::step]
        field[:, half::step, ::step] = down + strength * noise[:, half::step, ::step]
        step, strength = half, strength / decay**2
    lowest, highest = field.min((1, 2), keepdims=True), field.max((1, 2), keepdims=True)
    return np.asarray((field - lowest) / np.maximum(highest - lowest, 1e-12))


def grey(x: Pixels) -> Pixels:
    """Return the luma (N, H, W, 1): ITU-R BT.601 of three channels, the mean of others."""
    if x.shape[-1] == 3:
        return np.asarray((x @ np.array([0.299, 0.587, 0.114]))[..., None])
    return np.asarray(x.mean(-1, keepdims=True))


def tinted(rgb: tuple[float, float, float], channels: int) -> Numbers:
    """Return a colour (0..255) as (channels,) in [0, 1]: as it is for three channels, else its luma."""
    colour = np.array(rgb) / 255
    return colour if channels == 3 else np.full(channels, colour @ np.array([0.299, 0.587, 0.114]))
