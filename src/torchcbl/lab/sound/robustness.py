"""How right a network stays in background noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcbl.lab.scores import Scores
from torchcbl.lab.sound.features import check_rate
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.noise import NoiseMixer

if TYPE_CHECKING:
    from torchcbl.lab.data.clips import Clips

CLEAN = math.inf
RATIOS = (CLEAN, 20.0, 10.0, 5.0, 0.0, -5.0)
"""Signal-to-noise ratios in decibels; infinitely much signal is the clean clip."""


@torch.no_grad()
def scores_by_snr(
    outputs: Callable[..., Sequence[Tensor] | Tensor],
    clips: Clips,
    front_end: MelFrontEnd,
    noise: NoiseMixer,
    *,
    ratios: Sequence[float] = RATIOS,
    batch_size: int = 128,
    seed: int = 0,
    labelled: bool = False,
) -> dict[float, Scores]:
    """Score a network on clips with background noise, at each signal-to-noise ratio.

    A clip meets the same stretch of the same recording at every ratio and for every network, so that differences are
    paired. Silent clips stay silent (see `at_snr`). Where training mixed noise in, measure with other noise: see
    `NoiseMixer.split`.

    Args:
        outputs: Maps normalised spectrograms (B, 1, bins, frames), and classes (B,) where `labelled`, to logits
            y_0..y_T, each (B, K); in eval mode.
        clips: What to score on.
        front_end: The one that the network was trained with, on the CPU.
        noise: The recordings; its `share` and `snr_db` have no part here.
        ratios: In decibels; infinity is the clean clip.
        batch_size: Clips in a batch, at least 1.
        seed: Which noise.
        labelled: Whether `outputs` is also told the classes, for oracles.

    Returns:
        By ratio, loss and accuracy at every step tau.

    Raises:
        ValueError: The sample rates differ, `batch_size` is out of range, or `ratios` is empty or holds NaN.

    Example:
        >>> import numpy as np
        >>> from torchcbl.lab.data.clips import Clips
        >>> hum = np.tile(np.array([9, -9], dtype=np.int16), 800)
        >>> clips = Clips(hum[None].repeat(2, 0), torch.tensor([0, 1]), num_classes=2, names=("a", "b"))
        >>> always_0 = lambda x: [torch.tensor([1.0, 0.0]).expand(len(x), 2)]
        >>> scores = scores_by_snr(always_0, clips, MelFrontEnd(), NoiseMixer({"hum": hum}), ratios=(CLEAN, 0.0))
        >>> {ratio: score.accuracy for ratio, score in scores.items()}
        {inf: (0.5,), 0.0: (0.5,)}
    """
    check_rate(clips, front_end)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not ratios or any(math.isnan(ratio) for ratio in ratios):
        raise ValueError(f"ratios must be decibels, at least one, got {tuple(ratios)}: the default is {RATIOS}")
    scores = {float(ratio): Scores() for ratio in ratios}
    for start in range(0, len(clips), batch_size):
        indices = torch.arange(start, min(start + batch_size, len(clips)))
        waveforms, target = from_pcm(clips.waveforms[indices.numpy()]), clips.labels[indices]
        for ratio, score in scores.items():
            x = front_end(noise.at(waveforms, indices, ratio, seed))
            score.add(tuple(outputs(x, target) if labelled else outputs(x)), target)
    return scores
