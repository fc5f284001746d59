from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchcbl.lab.data.images import Images, channel_statistics
from torchcbl.lab.data.splits import split_dataset
from torchcbl.lab.data.strata import stratified_sample, stratified_split


def test_equal_classes_get_equal_shares() -> None:
    labels = torch.arange(10).repeat(500)
    rest, held_out = stratified_split(labels, 500, seed=0)
    assert torch.bincount(labels[held_out]).tolist() == [50] * 10
    assert torch.bincount(labels[rest]).tolist() == [450] * 10


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(st.integers(20, 60), min_size=2, max_size=6), share=st.floats(0.1, 0.9), seed=st.integers(0, 9))
def test_a_split_is_a_partition_with_proportional_shares(sizes: list[int], share: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.tensor(sizes))
    size = round(share * len(labels))
    rest, held_out = stratified_split(labels, size, seed)
    assert torch.cat([rest, held_out]).sort().values.tolist() == list(range(len(labels)))
    assert len(held_out) == size
    exact = torch.tensor(sizes) * size / len(labels)
    assert (torch.bincount(labels[held_out], minlength=len(sizes)) - exact).abs().max() < 1


def test_largest_remainders_are_rounded_up() -> None:
    labels = torch.repeat_interleave(torch.tensor([10, 13, 17]))  # 20 of 40: exact shares 5, 6.5, 8.5
    _, held_out = stratified_split(labels, 20, seed=0)
    assert torch.bincount(labels[held_out]).tolist() == [5, 7, 8]


def test_the_seed_alone_chooses() -> None:
    labels = torch.arange(3).repeat(20)
    first, again, other = (stratified_split(labels, 12, seed)[1] for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_split_never_changes() -> None:
    """These numbers stand for every published one: if they change, old records are no longer comparable."""
    _, held_out = stratified_split(torch.arange(2).repeat(10), 4, seed=0)
    assert held_out.tolist() == [4, 7, 11, 16]


@pytest.mark.parametrize("size", [-1, 0, 2, 18, 20, 99])
def test_sizes_that_leave_a_class_without_images(size: int) -> None:
    with pytest.raises(
        ValueError, match=rf"cannot hold out {size} of 20 samples: each of the 3 classes \(the smallest has 6"
    ):
        stratified_split(torch.repeat_interleave(torch.tensor([6, 7, 7])), size, seed=0)


def test_negative_seed() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        stratified_split(torch.arange(2).repeat(10), 4, seed=-1)


def test_statistics_are_those_of_the_training_part_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 4, 4), dtype=torch.uint8, generator=generator)
    full = Images(pixels, torch.arange(4).repeat(10), num_classes=4)
    data = split_dataset(full, full.take(torch.arange(3)), validation_size=8)
    assert (len(data.train), len(data.validation), len(data.test)) == (32, 8, 3)
    assert (data.mean, data.std) == channel_statistics(data.train.images)
    assert data.mean != channel_statistics(full.images)[0]
    rest, held_out = stratified_split(full.labels, 8, seed=0)
    assert torch.equal(data.train.images, full.images[rest])
    assert torch.equal(data.validation.labels, full.labels[held_out])


def test_a_constant_channel_cannot_be_normalised() -> None:
    full = Images(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(2).repeat(4), num_classes=2)
    with pytest.raises(ValueError, match="a constant channel cannot be normalised"):
        split_dataset(full, full, validation_size=2)


@pytest.mark.parametrize(("sizes", "size"), [((500, 501), 1000), ((1500, 1499, 1), 1500), ((3, 3), 0), ((3, 2), 5)])
def test_a_sample_may_leave_a_class_out_or_take_all_of_one(sizes: tuple[int, ...], size: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = stratified_sample(labels, size, seed=0)
    assert len(chosen) == size
    counts = torch.bincount(labels[chosen], minlength=len(sizes)).double()
    assert ((counts - torch.tensor(sizes) * size / sum(sizes)).abs() < 1).all()


def test_a_sample_is_what_a_split_holds_out() -> None:
    labels = torch.arange(100) % 3
    assert torch.equal(stratified_sample(labels, 30, seed=2), stratified_split(labels, 30, seed=2)[1])
