from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchcbl.lab.data.batches import PADDING, Batches, crop_and_flip
from torchcbl.lab.data.images import Images

MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.25, 0.3)


def images(count: int, shape: tuple[int, int, int] = (3, 10, 12)) -> Images:
    """Random images whose label is their index."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count), num_classes=max(count, 2))


def batches(data: Images, *, batch_size: int = 8, seed: int | None = None, augment: bool = False) -> Batches:
    return Batches(data, mean=MEAN, std=STD, batch_size=batch_size, seed=seed, augment=augment)


def epoch_of(loader: Batches, epoch: int) -> tuple[Tensor, Tensor]:
    loader.set_epoch(epoch)
    inputs, labels = zip(*loader, strict=True)
    return torch.cat(inputs), torch.cat(labels)


def normalised(raw: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    return ((raw.double() / 255 - mean) / std).float()


def crop_and_flip_one(image: Tensor, top: int, left: int, mirrored: bool) -> Tensor:
    """Do to one (C, H, W) image what is said, pixel by pixel: what lies outside it is black."""
    _, height, width = image.shape
    result = torch.zeros_like(image)
    for row, column in itertools.product(range(height), range(width)):
        source_row = row + top - PADDING
        source_column = (width - 1 - column if mirrored else column) + left - PADDING
        if 0 <= source_row < height and 0 <= source_column < width:
            result[:, row, column] = image[:, source_row, source_column]
    return result


def test_evaluation_is_every_image_in_order_and_untouched() -> None:
    data = images(21)
    loader = batches(data)
    inputs, labels = epoch_of(loader, 3)
    assert [len(labels) for _, labels in loader] == [8, 8, 5]
    assert len(loader) == 3
    assert torch.equal(labels, data.labels)
    assert inputs.dtype == torch.float32
    torch.testing.assert_close(inputs, normalised(data.images), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_training_sees_every_index_once_per_epoch(augment: bool) -> None:
    loader = batches(images(21), seed=0, augment=augment)
    for epoch in range(3):
        _, labels = epoch_of(loader, epoch)
        assert labels.tolist() != list(range(21))
        assert sorted(labels.tolist()) == list(range(21))


def test_shuffled_images_keep_their_labels() -> None:
    data = images(21)
    inputs, labels = epoch_of(batches(data, seed=0), 0)
    torch.testing.assert_close(inputs, normalised(data.images[labels]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("augment", [False, True])
def test_batches_depend_on_seed_and_epoch_alone(augment: bool) -> None:
    data = images(40)
    walked = batches(data, seed=3, augment=augment)
    epochs = [epoch_of(walked, epoch) for epoch in range(3)]
    torch.manual_seed(99)  # the global generator has no say
    resumed = epoch_of(batches(data, seed=3, augment=augment), 2)
    assert all(torch.equal(got, expected) for got, expected in zip(resumed, epochs[2], strict=True))
    other_seed = epoch_of(batches(data, seed=4, augment=augment), 2)
    orders = {tuple(labels.tolist()) for _, labels in [*epochs, other_seed]}
    assert len(orders) == 4


def test_large_seeds_are_not_cut_short() -> None:
    """torch's CPU generator keeps the low 32 bits of a seed."""
    data = images(40)
    orders = {tuple(epoch_of(batches(data, seed=seed), 0)[1].tolist()) for seed in (1, 1 + 2**32, 1 + 2**40)}
    assert len(orders) == 3


def test_augmenting_does_not_change_the_order() -> None:
    data = images(40)
    plain, augmented = (epoch_of(batches(data, seed=0, augment=augment), 1) for augment in (False, True))
    assert torch.equal(plain[1], augmented[1])
    assert not torch.equal(plain[0], augmented[0])


def test_batch_size_does_not_change_the_images() -> None:
    data = images(40)
    small, large = (epoch_of(batches(data, batch_size=size, seed=0, augment=True), 0) for size in (7, 40))
    assert torch.equal(small[0], large[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_equals_the_reference_for_every_crop(channels: int) -> None:
    cases = list(itertools.product(range(2 * PADDING + 1), range(2 * PADDING + 1), [False, True]))
    raw = images(len(cases), (channels, 6, 7)).images
    corners = torch.tensor([case[:2] for case in cases])
    mirrored = torch.tensor([case[2] for case in cases])
    pixels = crop_and_flip(raw.permute(0, 2, 3, 1).numpy(), corners.numpy(), mirrored.numpy())
    expected = torch.stack([crop_and_flip_one(image, *case) for image, case in zip(raw, cases, strict=True)])
    assert torch.equal(torch.from_numpy(pixels).permute(0, 3, 1, 2), expected)


def test_augmented_batches_are_normalised_crops() -> None:
    """Each image is one of its own 162 crops, and all parts of the range are drawn about equally often."""
    data = images(300, (3, 6, 7))
    inputs, labels = epoch_of(batches(data, seed=0, augment=True), 0)
    cases = list(itertools.product(range(2 * PADDING + 1), range(2 * PADDING + 1), [False, True]))
    corners, mirrored = torch.tensor([case[:2] for case in cases]).numpy(), torch.tensor([c[2] for c in cases]).numpy()
    tally = torch.zeros(9, 9, 2)
    for got, label in zip(inputs, labels, strict=True):
        raw = data.images[label].permute(1, 2, 0).expand(len(cases), -1, -1, -1).numpy()
        every_crop = normalised(torch.from_numpy(crop_and_flip(raw, corners, mirrored)).permute(0, 3, 1, 2))
        distances = (every_crop - got).abs().amax((1, 2, 3))
        assert distances.min() < 1e-5
        top, left, flipped = cases[int(distances.argmin())]
        tally[top, left, int(flipped)] += 1
    assert (tally.sum((1, 2)) > 15).all()  # expected 33.3 of each row, standard deviation 5.4
    assert (tally.sum((0, 2)) > 15).all()
    assert (tally.sum((0, 1)) > 110).all()  # expected 150, standard deviation 8.7


def test_padding_is_black_not_mean() -> None:
    data = Images(torch.full((64, 3, 6, 6), 255, dtype=torch.uint8), torch.arange(64), num_classes=64)
    inputs, _ = epoch_of(batches(data, seed=0, augment=True), 0)
    black, white = (normalised(torch.full((3, 1, 1), level))[:, 0, 0] for level in (0, 255))
    for channel in range(3):
        seen = inputs[:, channel].unique()
        torch.testing.assert_close(seen, torch.stack([black[channel], white[channel]]))


@pytest.mark.parametrize("augment", [False, True])
def test_memory_format_changes_the_layout_and_nothing_else(augment: bool) -> None:
    data = images(9)
    plain, channels_last = (
        next(iter(Batches(data, mean=MEAN, std=STD, batch_size=9, seed=0, augment=augment, memory_format=layout)))[0]
        for layout in (torch.contiguous_format, torch.channels_last)
    )
    assert plain.is_contiguous()
    assert channels_last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(plain, channels_last)


def test_batches_may_be_changed_in_place() -> None:
    data = images(4)
    before = data.images.clone(), data.labels.clone()
    loader = batches(data)
    first = epoch_of(loader, 0)[0].clone()
    for inputs, labels in loader:
        inputs.zero_()
        labels.zero_()
    assert torch.equal(epoch_of(loader, 0)[0], first)
    assert torch.equal(data.images, before[0])
    assert torch.equal(data.labels, before[1])


def test_the_epoch_is_read_with_the_first_batch() -> None:
    loader = batches(images(21), seed=0)
    expected = epoch_of(loader, 5)[1]
    loader.set_epoch(0)
    made_early = iter(loader)
    loader.set_epoch(5)
    assert torch.equal(torch.cat([labels for _, labels in made_early]), expected)


def test_lightning_resumes_with_the_batches_of_its_epoch(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")

    class Recorder(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(360, 2)
            self.loader = batches(images(21), seed=0, augment=True)
            self.seen: list[list[int]] = []

        def on_train_epoch_start(self) -> None:
            self.loader.set_epoch(self.current_epoch)
            self.seen.append([])

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            self.seen[-1] += batch[1].tolist()
            return self.layer(batch[0].flatten(1)).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-4)

    def fit(epochs: int, checkpoint: Path | None) -> Recorder:
        recorder = Recorder()
        trainer = lightning.Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False,
            enable_model_summary=False, enable_checkpointing=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(recorder, recorder.loader, ckpt_path=checkpoint)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return recorder

    whole = fit(4, None).seen
    fit(2, None)
    assert fit(4, tmp_path / "2.ckpt").seen == whole[2:]
    assert len({tuple(order) for order in whole}) == 4


def test_arguments_out_of_range() -> None:
    data = images(4)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        batches(data, batch_size=0)
    with pytest.raises(ValueError, match="seed must be 0 or more, or None to keep the order, got -1"):
        batches(data, seed=-1)
    with pytest.raises(ValueError, match="augment=True needs a seed: images that are evaluated are never"):
        batches(data, augment=True)
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        batches(data).set_epoch(-1)
    with pytest.raises(ValueError, match="one number for each of the 3 channels, got 1 and 3"):
        Batches(data, mean=(0.5,), std=STD, batch_size=2)
