"""Corruptions by blur, after Hendrycks and Dietterich 2019; lengths are in pixels of a 32 x 32 image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from torchcbl.lab.measures.disturb.draws import Pixels, Random, uniform
from torchcbl.lab.measures.disturb.filters import disk, gaussian, smear, zoom
from torchcbl.lab.measures.disturb.noises import jittered


def scale_of(x: Pixels) -> float:
    """How many pixels stand for one of a 32 x 32 image: lengths grow with larger images, and never shrink."""
    return float(max(1.0, min(x.shape[1:3]) / 32))


def gaussian_blur(x: Pixels, randoms: Sequence[Random], sigma: float) -> Pixels:
    """Blur by a Gaussian."""
    return gaussian(x, sigma * scale_of(x))


def defocus_blur(x: Pixels, randoms: Sequence[Random], radius: float, smoothing: float) -> Pixels:
    """Blur by a disk whose edge is smoothed; the border is mirrored."""
    kernel = disk(radius * scale_of(x), smoothing)
    return np.asarray(ndimage.convolve(x, kernel[None, :, :, None], mode="mirror"))


def glass_blur(x: Pixels, randoms: Sequence[Random], sigma: float, reach: int, rounds: int) -> Pixels:
    """Blur, mix neighbouring pixels up at random, and blur again, as behind frosted glass."""
    scale = scale_of(x)
    mixed = jittered(gaussian(x, sigma * scale), randoms, max(1, round(reach * scale)), rounds)
    return gaussian(mixed, sigma * scale)


def motion_blur(x: Pixels, randoms: Sequence[Random], radius: float, sigma: float) -> Pixels:
    """Smear each image along its own direction, -45 to 45 degrees from the horizontal."""
    scale = scale_of(x)
    return smear(x, radius * scale, sigma * scale, uniform(randoms, -45.0, 45.0))


def zoom_blur(x: Pixels, randoms: Sequence[Random], most: float) -> Pixels:
    """Average an image with itself enlarged 1, 1.01, 1.02, ... times, up to `most`."""
    factors = 1 + 0.01 * np.arange(round(100 * (most - 1)) + 1)
    total = x.copy()
    for factor in factors:
        total += zoom(x, float(factor))
    return np.asarray(total / (len(factors) + 1))
