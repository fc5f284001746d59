from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits as read

from torchcbl.lab.data.digits import load_digits


def test_every_digit_is_in_one_part() -> None:
    full, test = load_digits()
    original = np.rint(read().images * 255 / 16).astype(np.uint8).reshape(-1, 64)
    both = torch.cat([full.images, test.images]).flatten(1).numpy()
    assert np.array_equal(np.sort(both, axis=0), np.sort(original, axis=0))
    assert {row.tobytes() for row in both} == {row.tobytes() for row in original}
    assert (len(full), len(test)) == (1400, 397)


def test_pixels_keep_their_labels() -> None:
    source = read()
    label_of = {np.rint(image * 255 / 16).astype(np.uint8).tobytes(): label
                for image, label in zip(source.images, source.target, strict=True)}  # fmt: skip
    for part in load_digits():
        labels = [label_of[image.numpy().tobytes()] for image in part.images]
        assert labels == part.labels.tolist()


def test_full_range_and_stratified_test_part() -> None:
    full, test = load_digits()
    assert (int(full.images.min()), int(full.images.max())) == (0, 255)
    shares = torch.bincount(test.labels) / torch.bincount(torch.cat([full.labels, test.labels]))
    assert (shares - 397 / 1797).abs().max() < 0.006  # within one image of each class


def test_the_test_part_is_always_the_same() -> None:
    """If this number changes, records made before are no longer comparable."""
    _, test = load_digits()
    weights = torch.arange(1, 398) % 97
    assert int((test.images.sum((1, 2, 3)) * weights).sum()) == 92185271
