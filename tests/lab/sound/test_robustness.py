from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from sound_cases import clips, hiss, to_pcm
from torch import Tensor

from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.noise import NoiseMixer
from torchcbl.lab.sound.robustness import CLEAN, RATIOS, scores_by_snr

NOISE = NoiseMixer({"hiss": to_pcm(hiss(2)).reshape(-1)})


class Nearest:
    """Takes a clip for the one whose clean spectrogram is nearest; step 0 always says 0."""

    def __init__(self, clean: Tensor) -> None:
        self.clean = clean.flatten(1)

    def __call__(self, x: Tensor) -> list[Tensor]:
        logits = -torch.cdist(x.flatten(1), self.clean)
        first = torch.zeros_like(logits)
        first[:, 0] = 1
        return [first, logits]


def test_scores_each_ratio_at_each_step(front_end: MelFrontEnd) -> None:
    data = clips(40)
    network = Nearest(front_end(from_pcm(data.waveforms)))
    scores = scores_by_snr(network, data, front_end, NOISE, batch_size=16)
    assert tuple(scores) == RATIOS == (math.inf, 20.0, 10.0, 5.0, 0.0, -5.0)
    assert {score.n for score in scores.values()} == {40}
    assert scores[CLEAN].accuracy == (1 / 40, 1.0)
    assert 1 / 40 <= scores[-5.0].accuracy[1] < 0.8
    assert all(score.accuracy[0] == 1 / 40 for score in scores.values())


def test_a_ratio_is_the_noise_of_the_mixer(front_end: MelFrontEnd) -> None:
    data, seen = clips(5), []

    def outputs(x: Tensor) -> list[Tensor]:
        seen.append(x)
        return [torch.zeros(len(x), 5)]

    scores_by_snr(outputs, data, front_end, NOISE, ratios=(CLEAN, 5), seed=3, batch_size=5)
    waveforms = from_pcm(data.waveforms)
    assert torch.equal(seen[0], front_end(waveforms))
    assert torch.equal(seen[1], front_end(NOISE.at(waveforms, torch.arange(5), 5.0, seed=3)))


def test_batch_size_does_not_change_the_scores(front_end: MelFrontEnd) -> None:
    data = clips(20)
    network = Nearest(front_end(from_pcm(data.waveforms)))
    small, large = (scores_by_snr(network, data, front_end, NOISE, batch_size=size) for size in (3, 20))
    for ratio in RATIOS:
        assert small[ratio].accuracy == large[ratio].accuracy
        assert small[ratio].loss == pytest.approx(large[ratio].loss, rel=1e-5)


def test_arguments_out_of_range(front_end: MelFrontEnd) -> None:
    network = Nearest(torch.zeros(2, 1, 64, 26))
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        scores_by_snr(network, clips(2), front_end, NOISE, batch_size=0)
    with pytest.raises(ValueError, match="ratios must be decibels, at least one, got .nan,.: the default is"):
        scores_by_snr(network, clips(2), front_end, NOISE, ratios=(math.nan,))
    with pytest.raises(ValueError, match="8000 samples per second and the front end takes 16000"):
        scores_by_snr(network, replace(clips(2), sample_rate=8_000), front_end, NOISE)
