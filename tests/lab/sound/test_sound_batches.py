from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from sound_cases import clips, hiss, to_pcm
from torch import Tensor

from torchcbl.lab.data.batches import Batches
from torchcbl.lab.data.clips import Clips
from torchcbl.lab.data.images import Images
from torchcbl.lab.sound.batches import SoundBatches
from torchcbl.lab.sound.front_end import MelFrontEnd, from_pcm
from torchcbl.lab.sound.noise import NoiseMixer

NOISE = NoiseMixer({"hiss": to_pcm(hiss(2)).reshape(-1)})
OPTIONS = [{"masking": masking, "noise": noise} for masking, noise in itertools.product([False, True], [None, NOISE])]


@pytest.fixture(scope="module")
def data() -> Clips:
    return clips(21, num_samples=2_000)


@pytest.fixture(scope="module")
def fitted(data: Clips) -> MelFrontEnd:
    front_end = MelFrontEnd()
    front_end.fit(front_end.log_mel(from_pcm(data.waveforms)))
    return front_end


def batches(
    data: Clips,
    front_end: MelFrontEnd,
    *,
    batch_size: int = 8,
    seed: int | None = None,
    masking: bool = False,
    noise: NoiseMixer | None = None,
) -> SoundBatches:
    features = front_end.log_mel(from_pcm(data.waveforms)).numpy()
    options = {"batch_size": batch_size, "seed": seed, "masking": masking, "noise": noise}
    return SoundBatches(data, features, front_end, **options)  # type: ignore[arg-type]


def epoch_of(loader: SoundBatches, epoch: int) -> tuple[Tensor, Tensor]:
    loader.set_epoch(epoch)
    inputs, labels = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def test_evaluation_is_every_clip_in_order_and_untouched(data: Clips, fitted: MelFrontEnd) -> None:
    loader = batches(data, fitted)
    inputs, labels = epoch_of(loader, 3)
    assert [len(labels) for _, labels in loader] == [8, 8, 5]
    assert len(loader) == 3
    assert torch.equal(labels, data.labels)
    assert inputs.dtype == torch.float32
    assert torch.equal(inputs, fitted(from_pcm(data.waveforms)))


def test_shuffled_clips_keep_their_labels(data: Clips, fitted: MelFrontEnd) -> None:
    inputs, labels = epoch_of(batches(data, fitted, seed=0), 0)
    assert labels.tolist() != list(range(21))
    assert torch.equal(inputs, fitted(from_pcm(data.waveforms))[labels])


@pytest.mark.parametrize("options", OPTIONS)
def test_the_order_is_that_of_images_whatever_is_done_to_the_clips(
    data: Clips, fitted: MelFrontEnd, options: dict[str, object]
) -> None:
    images = Images(torch.zeros(21, 1, 8, 8, dtype=torch.uint8), torch.arange(21), num_classes=21)
    reference = Batches(images, mean=(0.5,), std=(0.5,), batch_size=8, seed=5)
    loader = batches(data, fitted, seed=5, **options)  # type: ignore[arg-type]
    for epoch in range(3):
        reference.set_epoch(epoch)
        assert torch.equal(epoch_of(loader, epoch)[1], torch.cat([labels for _, labels in reference]))


@pytest.mark.parametrize("options", OPTIONS)
def test_batches_depend_on_seed_and_epoch_alone(data: Clips, fitted: MelFrontEnd, options: dict[str, object]) -> None:
    walked = batches(data, fitted, seed=3, **options)  # type: ignore[arg-type]
    epochs = [epoch_of(walked, epoch) for epoch in range(3)]
    torch.manual_seed(99)  # the global generator has no say
    resumed = epoch_of(batches(data, fitted, seed=3, **options), 2)  # type: ignore[arg-type]
    assert all(torch.equal(got, expected) for got, expected in zip(resumed, epochs[2], strict=True))
    other_seed = epoch_of(batches(data, fitted, seed=3 + 2**32, **options), 2)  # type: ignore[arg-type]
    by_label = [inputs[labels.argsort()] for inputs, labels in [*epochs, other_seed]]
    same = [torch.equal(first, second) for first, second in itertools.combinations(by_label, 2)]
    assert not any(same) if options["masking"] or options["noise"] else all(same)


@pytest.mark.parametrize("options", OPTIONS)
def test_batch_size_does_not_change_the_clips(data: Clips, fitted: MelFrontEnd, options: dict[str, object]) -> None:
    small, large = (
        epoch_of(batches(data, fitted, batch_size=size, seed=0, **options), 1)  # type: ignore[arg-type]
        for size in (4, 21)
    )
    assert torch.equal(small[0], large[0])


def test_masks_hide_the_mean_and_leave_the_rest(data: Clips, fitted: MelFrontEnd) -> None:
    inputs, labels = epoch_of(batches(data, fitted, seed=0, masking=True), 0)
    plain = fitted(from_pcm(data.waveforms))[labels]
    hidden = inputs == 0
    assert torch.equal(inputs[~hidden], plain[~hidden])
    assert 0.1 < hidden.float().mean() < 0.6
    assert hidden.flatten(1).any(1).sum() > 15


def test_noise_is_mixed_into_the_waveforms_of_a_share(data: Clips, fitted: MelFrontEnd) -> None:
    inputs, labels = epoch_of(batches(data, fitted, seed=7, noise=NOISE), 2)
    expected = fitted(NOISE.mix(from_pcm(data.waveforms), torch.arange(21), seed=(2, 7)))
    assert torch.equal(inputs, expected[labels])
    untouched = (inputs == fitted(from_pcm(data.waveforms))[labels]).flatten(1).all(1).sum()
    assert 0 < untouched < 12  # expected 4.2, standard deviation 1.8


def test_noise_before_masks(data: Clips, fitted: MelFrontEnd) -> None:
    """The masks are those drawn without noise, and hide the noise too."""
    masked, both = (epoch_of(batches(data, fitted, seed=0, masking=True, noise=n), 0)[0] for n in (None, NOISE))
    noisy, _ = epoch_of(batches(data, fitted, seed=0, noise=NOISE), 0)
    assert torch.equal(both, torch.where(masked == 0, 0.0, noisy))


def test_memory_format_changes_the_layout_and_nothing_else(data: Clips, fitted: MelFrontEnd) -> None:
    features = fitted.log_mel(from_pcm(data.waveforms)).numpy()
    formats = (torch.contiguous_format, torch.channels_last)
    plain, channels_last = (
        next(iter(SoundBatches(data, features, fitted, batch_size=9, memory_format=layout)))[0] for layout in formats
    )
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, channels_last)


def test_batches_may_be_changed_in_place(data: Clips, fitted: MelFrontEnd) -> None:
    loader = batches(data, fitted)
    first = epoch_of(loader, 0)[0].clone()
    for inputs, labels in loader:
        inputs.zero_()
        labels.zero_()
    assert torch.equal(epoch_of(loader, 0)[0], first)
    assert data.labels.tolist() == list(range(21))


def test_the_epoch_is_read_with_the_first_batch(data: Clips, fitted: MelFrontEnd) -> None:
    loader = batches(data, fitted, seed=0, masking=True, noise=NOISE)
    expected = epoch_of(loader, 5)
    loader.set_epoch(0)
    made_early = iter(loader)
    loader.set_epoch(5)
    first = next(made_early)
    loader.set_epoch(1)  # and an epoch that has begun is not changed
    inputs, labels = zip(first, *made_early, strict=True)
    assert torch.equal(torch.cat(inputs), expected[0])
    assert torch.equal(torch.cat(labels), expected[1])


def test_arguments_out_of_range(data: Clips, fitted: MelFrontEnd) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(data, fitted, batch_size=0)
    with pytest.raises(ValueError, match="seed must be 0 or more, or None to keep the order, got -1"):
        batches(data, fitted, seed=-1)
    with pytest.raises(ValueError, match="masking=True needs a seed: clips that are evaluated are never"):
        batches(data, fitted, masking=True)
    with pytest.raises(ValueError, match="noise needs a seed: clips that are evaluated are never"):
        batches(data, fitted, noise=NOISE)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        batches(data, fitted).set_epoch(-1)
    with pytest.raises(ValueError, match=r"must be \(21, 64, 13\), got \(20, 64, 13\): see features_on_disk"):
        SoundBatches(data, np.zeros((20, 64, 13), np.float32), fitted, batch_size=2)
    with pytest.raises(ValueError, match="clips have 8000 samples per second and the front end takes 16000"):
        batches(replace(data, sample_rate=8_000), fitted)
