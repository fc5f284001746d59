"""Corruptions like weather; fog and snow after Hendrycks and Dietterich 2019, frost and spatter in their manner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from torchcbl.lab.measures.disturb.blurs import scale_of
from torchcbl.lab.measures.disturb.draws import Pixels, Random, normal, uniform
from torchcbl.lab.measures.disturb.filters import Numbers, clouds, gaussian, grey, side_of, smear, tinted, zoom

_FROST = (196.0, 219.0, 241.0)
_WATER = (175.0, 238.0, 238.0)
_MUD = (63.0, 42.0, 20.0)
_EMBOSS = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])


def fog(x: Pixels, randoms: Sequence[Random], thickness: float, decay: float) -> Pixels:
    """(x + t f) m / (m + t): clouds f of thickness t, then as bright as before, m the image's maximum."""
    brightest = x.max((1, 2, 3), keepdims=True)
    return np.asarray((x + thickness * _clouds(x, randoms, decay)) * brightest / (brightest + thickness))


def snow(
    x: Pixels,
    randoms: Sequence[Random],
    mean: float,
    std: float,
    factor: float,
    threshold: float,
    radius: float,
    sigma: float,
    kept: float,
) -> Pixels:
    """Let flakes fall, and turn the scene pale.

    Flakes are normal noise, enlarged `factor` times, what is below `threshold` taken out, and smeared -135 to -45
    degrees from the horizontal; they are added, and once more turned by 180 degrees. The scene becomes
    `kept` x + (1 - `kept`) max(x, 1.5 grey + 0.5).
    """
    scale = scale_of(x)
    flakes = zoom(normal(randoms, mean, std, *x.shape[1:3], 1), factor)
    flakes = np.clip(np.where(flakes < threshold, 0.0, flakes), 0, 1)
    flakes = smear(flakes, radius * scale, sigma * scale, uniform(randoms, -135.0, -45.0))
    pale = kept * x + (1 - kept) * np.maximum(x, 1.5 * grey(x) + 0.5)
    return pale + flakes + flakes[:, ::-1, ::-1]


def frost_like(x: Pixels, randoms: Sequence[Random], kept: float, amount: float) -> Pixels:
    """`kept` x + `amount` ice. The published corruption takes photographs of frost, which are not shipped here.

    The ice is two layers of ridged clouds, r = 1 - |2 f - 1| raised to a power, which have the bright veins of
    crystals; a third layer of clouds says where they are dense.
    """
    veins = 1 - np.abs(2 * _clouds(x, randoms, 1.5) - 1)
    fine = 1 - np.abs(2 * _clouds(x, randoms, 1.25) - 1)
    dense = _clouds(x, randoms, 2.0)
    ice = np.clip(0.15 + 0.6 * veins**4 + 0.35 * fine**6 + 0.5 * dense**2, 0, 1)
    return kept * x + amount * ice * tinted(_FROST, x.shape[-1])


def spatter_like(
    x: Pixels,
    randoms: Sequence[Random],
    mean: float,
    std: float,
    sigma: float,
    threshold: float,
    strength: float,
    mud: bool,
) -> Pixels:
    """Splash water or mud on the lens: what of blurred normal noise is above `threshold`.

    Mud covers, its edge softened by `strength` pixels. Water shines: turquoise, in relief by the distance from the
    drop's edge. The published water takes OpenCV's edge detector and histogram equalisation; the relief here does not.
    """
    scale = scale_of(x)
    liquid = gaussian(normal(randoms, mean, std, *x.shape[1:3], 1), sigma * scale)
    drops = liquid > threshold
    if mud:
        cover = gaussian(drops.astype(np.float64), strength * scale)
        cover = np.where(cover < 0.8, 0.0, cover)
        return x * (1 - cover) + cover * tinted(_MUD, x.shape[-1])
    shine = np.where(drops, liquid, 0.0) * np.stack([_relief(drop) for drop in drops])
    brightest = np.maximum(shine.max((1, 2, 3), keepdims=True), 1e-12)
    return np.asarray(x + strength * shine / brightest * tinted(_WATER, x.shape[-1]))


def _relief(drop: NDArray[np.bool_]) -> Numbers:
    """Light a drop (H, W, 1) from the upper left, as high as it is far from its edge."""
    wet = drop[..., 0]
    outside = ndimage.distance_transform_edt(~wet) if wet.any() else np.zeros(wet.shape)
    inside = ndimage.distance_transform_edt(wet) if not wet.all() else np.ones(wet.shape)
    height = ndimage.uniform_filter(np.minimum(inside + outside, 20.0), 3)
    lit = np.clip(ndimage.correlate(height, _EMBOSS, mode="nearest"), 0, None)
    return np.asarray(ndimage.uniform_filter(lit, 3))[..., None]


def _clouds(x: Pixels, randoms: Sequence[Random], decay: float) -> Pixels:
    height, width = x.shape[1:3]
    side = side_of(height, width)
    return clouds(uniform(randoms, -1.0, 1.0, side, side), decay)[:, :height, :width, None]
