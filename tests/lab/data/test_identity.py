"""Which data a folder is about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from torchcbl.lab.data.identity import FILE, check_identity, identity, keep_identity
from torchcbl.lab.data.image_dataset import ImageDataset
from torchcbl.lab.data.images import Images


def a_dataset(size: int = 5, pixel: int = 0, label: int = 0, classes: tuple[str, ...] = ("a", "b")) -> ImageDataset:
    images = torch.zeros(size, 1, 2, 2, dtype=torch.uint8)
    images[0, 0, 0, 0] = pixel
    labels = torch.zeros(size, dtype=torch.long)
    labels[-1] = label
    part = Images(images, labels, num_classes=len(classes))
    return ImageDataset(part, part, part, mean=(0.5,), std=(0.25,), classes=classes)


def test_the_same_data_are_told_from_all_others() -> None:
    found = identity(a_dataset())
    assert found == identity(a_dataset())
    for other in (a_dataset(size=6), a_dataset(pixel=1), a_dataset(label=1), a_dataset(classes=("a", "c"))):
        assert identity(other) != found


def test_large_data_are_sampled_from_end_to_end() -> None:
    assert identity(a_dataset(size=2500, pixel=1)) != identity(a_dataset(size=2500))


def test_data_of_several_shapes_have_labels_in_common(tmp_path: Path) -> None:
    keep_identity(tmp_path, a_dataset(), fresh=True, shape="image_size=8")
    keep_identity(tmp_path, a_dataset(pixel=1), fresh=False, shape="image_size=16")
    with pytest.raises(ValueError, match="other data: digest"):
        keep_identity(tmp_path, a_dataset(pixel=1), fresh=False, shape="image_size=8")
    with pytest.raises(ValueError, match="other data: digest"):
        keep_identity(tmp_path, a_dataset(label=1), fresh=False, shape="image_size=32")


def test_what_was_begun_on_other_data_is_refused(tmp_path: Path) -> None:
    check_identity(tmp_path, a_dataset())  # as in folders of earlier versions, which note nothing
    keep_identity(tmp_path, a_dataset(), fresh=False)
    keep_identity(tmp_path, a_dataset(), fresh=False)
    for keep in (check_identity, lambda out, data: keep_identity(out, data, fresh=False)):
        with pytest.raises(ValueError, match="made with other data: classes there .* here .*choose another --out"):
            keep(tmp_path, a_dataset(classes=("a", "c")))
    keep_identity(tmp_path, a_dataset(size=7), fresh=True)
    assert json.loads((tmp_path / FILE).read_text())["sizes"] == {"train": 7, "validation": 7, "test": 7}
    (tmp_path / FILE).write_text("{")
    with pytest.raises(ValueError, match=r"data\.json is damaged"):
        check_identity(tmp_path, a_dataset())
