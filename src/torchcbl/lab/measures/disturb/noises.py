"""Corruptions by noise, after Hendrycks and Dietterich 2019."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from torchcbl.lab.measures.disturb.draws import Pixels, Random, normal, uniform


def gaussian_noise(x: Pixels, randoms: Sequence[Random], scale: float) -> Pixels:
    """x + n, n normal with standard deviation `scale`."""
    return x + normal(randoms, 0.0, scale, *x.shape[1:])


def shot_noise(x: Pixels, randoms: Sequence[Random], photons: float) -> Pixels:
    """Poisson(x `photons`) / `photons`."""
    counts = [random.poisson(photons * image) for image, random in zip(x, randoms, strict=True)]
    return np.asarray(np.stack(counts) / photons)


def impulse_noise(x: Pixels, randoms: Sequence[Random], share: float) -> Pixels:
    """A `share` of the values becomes 0 or 1, either as likely; each channel on its own."""
    drawn = uniform(randoms, 0.0, 1.0, *x.shape[1:])
    return np.where(drawn < share / 2, 0.0, np.where(drawn < share, 1.0, x))


def speckle_noise(x: Pixels, randoms: Sequence[Random], scale: float) -> Pixels:
    """x + x n, n normal with standard deviation `scale`."""
    return x + x * normal(randoms, 0.0, scale, *x.shape[1:])


def jittered(x: Pixels, randoms: Sequence[Random], reach: int, rounds: int) -> Pixels:
    """Let each inner pixel take the value of a random one at most `reach` away in either direction; so many rounds.

    The published code is written as a swap of the two, but copies one onto the other, as numpy's views do.
    """
    count, height, width, _ = x.shape
    inner = (rounds, 2, max(0, height - 2 * reach), max(0, width - 2 * reach))
    moves = np.stack([random.randint(-reach, reach + 1, inner) for random in randoms])
    rows, columns = np.mgrid[reach : reach + inner[2], reach : reach + inner[3]]
    x, image = x.copy(), np.arange(count)[:, None, None]
    for turn in range(rounds):
        x[:, reach : reach + inner[2], reach : reach + inner[3]] = x[
            image, rows + moves[:, turn, 0], columns + moves[:, turn, 1]
        ]
    return x
