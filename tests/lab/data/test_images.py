from __future__ import annotations

import pytest
import torch

from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.images import Images, channel_statistics


def pixels(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def test_take_keeps_the_order_asked_for() -> None:
    images = Images(pixels(4, 3, 5, 6), torch.tensor([3, 2, 1, 0]), num_classes=4)
    taken = images.take(torch.tensor([2, 0]))
    assert torch.equal(taken.images, images.images[[2, 0]])
    assert taken.labels.tolist() == [1, 3]
    assert (len(taken), taken.num_classes) == (2, 4)


@pytest.mark.parametrize("label", [-1, 10])
def test_label_out_of_range(label: int) -> None:
    labels = torch.tensor([0, 9, label, label])
    with pytest.raises(ValueError, match=rf"label {label} at index 2 is outside 0\.\.9 \(num_classes=10\)"):
        Images(pixels(4, 3, 8, 8), labels, num_classes=10)


def test_wrong_dtypes() -> None:
    with pytest.raises(TypeError, match=r"images must be torch\.uint8, got torch\.float32"):
        Images(pixels(2, 3, 8, 8).float(), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(TypeError, match=r"labels must be torch\.int64, got torch\.int32"):
        Images(pixels(2, 3, 8, 8), torch.tensor([0, 1], dtype=torch.int32), num_classes=2)


def test_wrong_shapes_and_lengths() -> None:
    with pytest.raises(ValueError, match=r"must be \(N, C, H, W\).*got \(2, 8, 8\) and \(2,\)"):
        Images(pixels(2, 8, 8), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(ValueError, match=r"got 3 images of shape \(1, 8, 8\) and 2 labels"):
        Images(pixels(3, 1, 8, 8), torch.tensor([0, 1]), num_classes=2)
    with pytest.raises(ValueError, match="at least one image"):
        Images(pixels(0, 1, 8, 8), torch.tensor([], dtype=torch.int64), num_classes=2)
    with pytest.raises(ValueError, match="num_classes must be at least 2, got 1"):
        Images(pixels(1, 1, 8, 8), torch.tensor([0]), num_classes=1)


def test_channel_statistics_are_those_of_the_pixels() -> None:
    raw = pixels(50, 3, 7, 9) // torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)
    mean, std = channel_statistics(raw)
    scaled = raw.double() / 255
    torch.testing.assert_close(torch.tensor(mean).double(), scaled.mean((0, 2, 3)), rtol=1e-6, atol=0)
    expected = scaled.std((0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(std).double(), expected, rtol=1e-6, atol=0)


def test_parts_must_be_alike() -> None:
    labels = torch.tensor([0, 1])
    small, large = Images(pixels(2, 1, 8, 8), labels, 2), Images(pixels(2, 1, 9, 9), labels, 2)
    with pytest.raises(ValueError, match=r"test holds \(1, 9, 9\) images of 2 classes, but train \(1, 8, 8\)"):
        ImageDataset(small, small, large, (0.5,), (0.5,))
    with pytest.raises(ValueError, match="validation holds .* images of 3 classes"):
        ImageDataset(small, Images(small.images, labels, 3), small, (0.5,), (0.5,))


def test_normalisation_must_fit() -> None:
    part = Images(pixels(2, 3, 8, 8), torch.tensor([0, 1]), 2)
    with pytest.raises(ValueError, match="one number for each of the 3 channels, got 1 and 3"):
        ImageDataset(part, part, part, (0.5,), (0.5,) * 3)
    with pytest.raises(ValueError, match="std must be positive in every channel"):
        ImageDataset(part, part, part, (0.5,) * 3, (0.5, 0.0, 0.5))
