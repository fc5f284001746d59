"""Every corruption by name, with the parameters of its five severities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchcbl.lab.measures.disturb import blurs, digital, noises, weather
from torchcbl.lab.measures.disturb.draws import Pixels, randoms

SEVERITIES = (1, 2, 3, 4, 5)
VERSION = 1
"""Of the formulas: raise it when the same name and severity give other images."""


@dataclass(frozen=True)
class Corruption:
    """A way to damage images.

    Args:
        name: Its name; one that ends in `_like` departs from the published formula.
        group: "noise", "blur", "weather-like" or "digital".
        apply: Called with images (N, H, W, C) in [0, 1], their generators, and the parameters of one severity.
        levels: Parameters of severities 1 to 5, those published for CIFAR-10.
        standard: Whether it is one of the fifteen whose mean is the published score, or one of the four others.
        colour: Whether it needs three channels.
    """

    name: str
    group: str
    apply: Callable[..., Pixels]
    levels: tuple[tuple[float, ...], ...]
    standard: bool = True
    colour: bool = False

    def unfit(self, channels: int) -> str | None:
        """Say why it cannot be done to images with so many channels."""
        if self.colour and channels != 3:
            return f"needs three channels of colour, the images have {channels}"
        return None


def _steps(*values: float) -> tuple[tuple[float, ...], ...]:
    return tuple((value,) for value in values)


_ALL = (
    Corruption("gaussian_noise", "noise", noises.gaussian_noise, _steps(0.04, 0.06, 0.08, 0.09, 0.1)),
    Corruption("shot_noise", "noise", noises.shot_noise, _steps(500, 250, 100, 75, 50)),
    Corruption("impulse_noise", "noise", noises.impulse_noise, _steps(0.01, 0.02, 0.03, 0.05, 0.07)),
    Corruption("speckle_noise", "noise", noises.speckle_noise, _steps(0.06, 0.1, 0.12, 0.16, 0.2), standard=False),
    Corruption("defocus_blur", "blur", blurs.defocus_blur, ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1))),
    Corruption(
        "glass_blur",
        "blur",
        blurs.glass_blur,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    ),
    Corruption("motion_blur", "blur", blurs.motion_blur, ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5))),
    Corruption("zoom_blur", "blur", blurs.zoom_blur, _steps(1.05, 1.1, 1.15, 1.2, 1.25)),
    Corruption("gaussian_blur", "blur", blurs.gaussian_blur, _steps(0.4, 0.6, 0.7, 0.8, 1), standard=False),
    Corruption(
        "snow",
        "weather-like",
        weather.snow,
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
    ),
    Corruption(
        "frost_like",
        "weather-like",
        weather.frost_like,
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
    ),
    Corruption("fog", "weather-like", weather.fog, ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75))),
    Corruption(
        "spatter_like",
        "weather-like",
        weather.spatter_like,
        (
            (0.62, 0.1, 0.7, 0.7, 0.5, False),
            (0.65, 0.1, 0.8, 0.7, 0.5, False),
            (0.65, 0.3, 1, 0.69, 0.5, False),
            (0.65, 0.1, 0.7, 0.69, 0.6, True),
            (0.65, 0.1, 0.5, 0.68, 0.6, True),
        ),
        standard=False,
    ),
    Corruption("brightness", "digital", digital.brightness, _steps(0.05, 0.1, 0.15, 0.2, 0.3)),
    Corruption("contrast", "digital", digital.contrast, _steps(0.75, 0.5, 0.4, 0.3, 0.15)),
    Corruption(
        "saturate",
        "digital",
        digital.saturate,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        standard=False,
        colour=True,
    ),
    Corruption(
        "elastic_transform",
        "digital",
        digital.elastic_transform,
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
    ),
    Corruption("pixelate", "digital", digital.pixelate, _steps(0.95, 0.9, 0.85, 0.75, 0.65)),
    Corruption("jpeg_compression", "digital", digital.jpeg_compression, _steps(80, 65, 58, 50, 40)),
)
CORRUPTIONS = {corruption.name: corruption for corruption in _ALL}


def corrupt(
    pixels: NDArray[np.uint8], name: str, severity: int, indices: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.uint8]:
    """Damage images; the same image comes out the same, whatever batch it is in.

    Args:
        pixels: (N, H, W, C), C being 1 or 3.
        name: One of `CORRUPTIONS`.
        severity: 1 to 5.
        indices: Which images of the test part they are, (N,): what is drawn at random depends on (name, severity,
            index) alone.

    Returns:
        (N, H, W, C), rounded to whole intensities.

    Raises:
        ValueError: The name or the severity is unknown, or the images do not fit.

    Example:
        >>> image = np.full((1, 8, 8, 1), 100, np.uint8)
        >>> int(corrupt(image, "brightness", 1, [0])[0, 0, 0, 0])
        113
    """
    if name not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(f"no corruption '{name}' of severity {severity}: there are {', '.join(CORRUPTIONS)}, 1 to 5.")
    one = CORRUPTIONS[name]
    reason = one.unfit(pixels.shape[-1])
    if reason:
        raise ValueError(f"{name} {reason}: leave it out.")
    generators = randoms(name, severity, indices)
    changed = one.apply(pixels / 255.0, generators, *one.levels[severity - 1])
    return np.rint(255 * np.clip(changed, 0, 1)).astype(np.uint8)
