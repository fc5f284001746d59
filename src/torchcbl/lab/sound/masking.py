"""Time and frequency masking (SpecAugment without its warping)."""

from __future__ import annotations

import torch
from torch import Tensor

MASKS = 2  # along each axis


def draw_masks(count: int, generator: torch.Generator) -> Tensor:
    """Draw what `mask` takes for `count` spectrograms: uniform numbers, (count, 2, 2, 2)."""
    return torch.rand((count, 2, MASKS, 2), generator=generator)


def mask(x: Tensor, draws: Tensor) -> Tensor:
    """Set two stretches of time and two bands of frequency to 0, which normalised is each bin's training mean.

    A mask's width is drawn uniformly from 0..7 of every 40 bins (0..11 of 64) or 0..1/4 of the frames (0..25 of 101),
    then its place among all where it fits. The widths are those of Keyword Transformer on Speech Commands (Berg,
    O'Connor and Cruz 2021, arXiv:2104.00769), whose spectrograms have 40 bins and 98 frames.

    Source: Park et al. 2019, arXiv:1904.08779.

    Args:
        x: Normalised spectrograms, (B, 1, bins, frames).
        draws: Of `draw_masks`, (B, 2, 2, 2): axis, mask, (width, place).

    Returns:
        The masked spectrograms, (B, 1, bins, frames).

    Example:
        >>> draws = draw_masks(2, torch.Generator().manual_seed(0))
        >>> bool((mask(torch.ones(2, 1, 64, 101), draws) == 0).any())
        True
    """
    _, _, bins, frames = x.shape
    hidden_bins = _covered(draws[:, 0], bins, bins * 7 // 40)
    hidden_frames = _covered(draws[:, 1], frames, frames // 4)
    return x.masked_fill((hidden_bins[:, :, None] | hidden_frames[:, None, :])[:, None], 0.0)


def _covered(draws: Tensor, length: int, widest: int) -> Tensor:
    """Say which of `length` places a clip's masks cover, bool, (B, length)."""
    widths = (draws[..., 0] * (widest + 1)).long()
    starts = (draws[..., 1] * (length - widths + 1)).long()
    places = torch.arange(length)
    covered = (places >= starts[..., None]) & (places < (starts + widths)[..., None])
    return covered.any(1)
