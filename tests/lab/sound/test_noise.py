from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sound_cases import hiss, rumble, speech_like, to_pcm
from torch import Tensor

from torchcbl.lab.sound.noise import NoiseMixer, at_snr

RATIOS = (20.0, 10.0, 5.0, 0.0, -5.0)


def recordings() -> dict[str, NDArray[np.int16]]:
    long = to_pcm(hiss(3)).reshape(-1)
    return {"hiss": long, "rumble": to_pcm(rumble(1))[0]}


def power_ratio(clean: Tensor, noisy: Tensor) -> Tensor:
    """Signal to noise in dB, measured: the noise is what was added."""
    return 10 * (clean.double().square().mean(1) / (noisy.double() - clean.double()).square().mean(1)).log10()


def ramp(length: int) -> NDArray[np.int16]:
    """A recording whose every stretch tells where it was cut."""
    return np.arange(1, length + 1, dtype=np.int16)


@pytest.mark.parametrize("snr_db", RATIOS)
def test_noise_is_at_the_ratio_asked_for(snr_db: float) -> None:
    clean = torch.cat([speech_like(6), 1e-3 * speech_like(6)])
    noisy = NoiseMixer(recordings()).at(clean, torch.arange(12), snr_db)
    torch.testing.assert_close(power_ratio(clean, noisy), torch.full((12,), snr_db).double(), rtol=0, atol=0.01)


def test_a_ratio_for_each_clip() -> None:
    ratios = torch.tensor([20.0, 0.0, -5.0])
    noisy = at_snr(speech_like(3), hiss(3), ratios)
    torch.testing.assert_close(power_ratio(speech_like(3), noisy), ratios.double(), rtol=0, atol=0.01)


def test_the_closed_form() -> None:
    noisy = at_snr(torch.tensor([[3.0, -3.0]]), torch.tensor([[2.0, 2.0]]), snr_db=0.0)
    torch.testing.assert_close(noisy, torch.tensor([[6.0, 0.0]]))


def test_silent_clips_and_silent_noise_stay_as_they_are() -> None:
    clean = torch.stack([torch.zeros(100), torch.ones(100), torch.zeros(100)])
    noise = torch.stack([torch.ones(100), torch.zeros(100), torch.zeros(100)])
    assert torch.equal(at_snr(clean, noise, 0.0), clean)


def test_what_a_clip_gets_does_not_depend_on_its_batch() -> None:
    clean, mixer = speech_like(12), NoiseMixer(recordings())
    indices = torch.randperm(1000)[:12]
    whole = mixer.mix(clean, indices, seed=3), mixer.at(clean, indices, 5.0)
    for part in (slice(0, 1), slice(3, 8)):
        assert torch.equal(mixer.mix(clean[part], indices[part], seed=3), whole[0][part])
        assert torch.equal(mixer.at(clean[part], indices[part], 5.0), whole[1][part])
    flipped = mixer.mix(clean.flip(0), indices.flip(0), seed=3)
    assert torch.equal(flipped.flip(0), whole[0])


def test_another_seed_is_other_noise() -> None:
    clean, mixer = speech_like(1), NoiseMixer(recordings(), share=1.0)
    seeds = [(0, 1), (1, 1), (0, 2), (0, 1 + 2**32), (1, 1 + 2**40)]
    drawn = [mixer.mix(clean, torch.tensor([0]), seed) for seed in seeds]
    assert len({tuple(noisy.flatten().tolist()) for noisy in drawn}) == len(seeds)


def test_the_noise_is_the_same_at_every_ratio() -> None:
    clean, mixer = speech_like(4), NoiseMixer(recordings())
    added = [mixer.at(clean, torch.arange(4), snr_db) - clean for snr_db in (0.0, -20.0)]
    torch.testing.assert_close(added[0] * 10, added[1], rtol=1e-3, atol=1e-5)


def test_training_draws_share_ratio_recording_and_place() -> None:
    count = 2000
    mixer = NoiseMixer({"up": ramp(1000), "down": -ramp(1000)}, share=0.7, snr_db=(3.0, 12.0))
    clean = torch.ones(count, 10)
    noisy = mixer.mix(clean, torch.arange(count), seed=0)
    mixed = (noisy != clean).any(1)
    assert 0.66 < mixed.float().mean() < 0.74  # standard deviation 0.01
    ratios = power_ratio(clean[mixed], noisy[mixed])
    assert 3.0 <= ratios.min() < 3.1
    assert 11.9 < ratios.max() <= 12.01
    assert abs(ratios.mean() - 7.5) < 0.3
    added = noisy[mixed] - clean[mixed]
    assert 0.45 < (added[:, 0] > 0).float().mean() < 0.55  # which recording
    starts = added[:, 0] / (added[:, 1] - added[:, 0]) - 1
    assert starts.min() < 10
    assert starts.max() > 980  # the last place where a clip fits is 990
    assert 450 < starts.median() < 540


def test_short_recordings_are_repeated() -> None:
    mixer = NoiseMixer({"short": np.array([100, -100, 50], dtype=np.int16)})
    added = mixer.at(torch.ones(1, 7), torch.tensor([0]), 0.0) - 1
    torch.testing.assert_close(added / added[0, 0], torch.tensor([[1.0, -1, 0.5, 1, -1, 0.5, 1]]))


def test_split_recordings_share_no_sample() -> None:
    mixer = NoiseMixer({"up": ramp(100)}, share=0.5, snr_db=(1.0, 2.0))
    first, rest = mixer.split(0.25)
    assert first.recordings["up"].tolist() == list(range(1, 26))
    assert rest.recordings["up"].tolist() == list(range(26, 101))
    assert (first.share, rest.snr_db) == (0.5, (1.0, 2.0))
    with pytest.raises(ValueError, match=r"share in \(0, 1\) of the recordings, got 1"):
        mixer.split(1.0)


def test_arguments_out_of_range() -> None:
    with pytest.raises(ValueError, match="recordings is empty: give at least one"):
        NoiseMixer({})
    with pytest.raises(TypeError, match="recording 'hum' must be int16, got float64"):
        NoiseMixer({"hum": np.ones(9)})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"recording 'hum' must be \(S,\) and not silent: got shape \(1, 9\)"):
        NoiseMixer({"hum": np.ones((1, 9), np.int16)})
    with pytest.raises(ValueError, match="recording 'hum' must be .* not silent: every sample is 0"):
        NoiseMixer({"hum": np.zeros(9, np.int16)})
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\], got 0"):
        NoiseMixer(recordings(), share=0.0)
    with pytest.raises(ValueError, match=r"\(lowest, highest\) decibels in -100..100, got \(5, 0\)"):
        NoiseMixer(recordings(), snr_db=(5, 0))
    with pytest.raises(ValueError, match=r"must both be \(B, S\), got \(2, 16000\) and \(3, 16000\)"):
        at_snr(hiss(2), hiss(3), 0.0)
