from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchcbl.lab.data import DATASETS, load_data


def test_digits_do_not_look_at_a_folder(tmp_path: Path) -> None:
    data = load_data("digits", folder=tmp_path / "nowhere", validation_size=200)
    assert (len(data.train), len(data.validation), len(data.test)) == (1200, 200, 397)
    assert data.image_shape == (1, 8, 8)
    assert data.num_classes == 10


def test_split_seed_changes_validation_and_never_test() -> None:
    first, again, other = (load_data("digits", validation_size=200, split_seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)
    assert torch.equal(first.test.images, other.test.images)


def test_cifar10_uses_the_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_data("cifar10", folder=tmp_path / "nowhere", validation_size=5000)


@pytest.mark.parametrize(("name", "hint"), [("cifar-10", "cifar10"), ("CIFAR10", "cifar10"), ("digit", "digits")])
def test_unknown_name(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown data '{name}': did you mean '{hint}'\? There are digits, cifar10"):
        load_data(name, validation_size=200)


def test_unknown_name_like_no_other() -> None:
    with pytest.raises(ValueError, match=r"unknown data 'imagenet'\. There are digits, cifar10"):
        load_data("imagenet", validation_size=200)
    assert DATASETS == ("digits", "cifar10")


def test_validation_size_must_fit() -> None:
    with pytest.raises(ValueError, match="cannot hold out 1400 of 1400 samples"):
        load_data("digits", validation_size=1400)


def test_no_validation_size_is_a_tenth() -> None:
    assert len(load_data("digits", validation_size=0).validation) == 140


def test_importing_it_loads_no_training_framework() -> None:
    heavy = ("lightning", "sklearn", "pyarrow", "PIL")
    code = f"import sys, torchcbl.lab.data; print([name for name in {heavy} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
