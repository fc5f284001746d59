"""Saving and loading."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

import torchcbl as cbl
from backbones import Mlp, ResidualCnn
from torchcbl.adapters import Film, Gate
from torchcbl.files import write_atomically

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def net() -> cbl.ContextLoop:
    net = cbl.ContextLoop(
        ResidualCnn(),
        ["block1", "block2"],
        IMAGES,
        adapter={"block1": "gate", "block2": Film},
        context=cbl.Context(dim=5, source="probs", detach=True),
        steps=3,
        alpha=0.1,
        schedule="synchronous",
    )
    with torch.no_grad():
        for p in [*net.adapters.parameters(), *net.context.parameters()]:
            p.normal_()
    net.train()
    net(IMAGES)  # feeds the per-step statistics
    return net.eval()


@pytest.fixture
def folder(net: cbl.ContextLoop, tmp_path: Path) -> Path:
    net.save(str(tmp_path / "saved"))
    return tmp_path / "saved"


def test_round_trip(net: cbl.ContextLoop, folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["adapters.safetensors", "config.json"]
    again = cbl.load(str(folder), net.backbone)
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert not again.training
    assert repr(again).splitlines()[0] == repr(net).splitlines()[0]
    assert not torch.equal(net(IMAGES), net.backbone(IMAGES))


def test_the_backbone_comes_along_on_request(net: cbl.ContextLoop, folder: Path) -> None:
    net.save(folder, include_backbone=True)
    assert torch.equal(cbl.load(folder, ResidualCnn().eval())(IMAGES), net(IMAGES))
    net.save(folder)
    assert not (folder / "backbone.safetensors").exists()


def test_other_weights_are_refused_by_name(net: cbl.ContextLoop, folder: Path) -> None:
    with torch.no_grad():
        net.backbone.fc.bias[0] += 1
    with pytest.raises(ValueError, match=r"the backbone differs from what was saved: 'fc.bias' has other values\."):
        cbl.load(folder, net.backbone)


def test_another_architecture_is_refused_by_name(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"'stem.weight' is missing.*and \d+ more"):
        cbl.load(folder, Mlp())
    wide = ResidualCnn()
    wide.fc = nn.Linear(6, 5)
    with pytest.raises(ValueError, match=r"'fc.bias' is float32 \[5\], expected float32 \[4\]"):
        cbl.load(folder, wide)


def test_damage_is_refused_by_name(net: cbl.ContextLoop, folder: Path, tmp_path: Path) -> None:
    tensors = (folder / "adapters.safetensors").read_bytes()
    (folder / "adapters.safetensors").write_bytes(tensors[:-10])
    with pytest.raises(ValueError, match=r"adapters.safetensors is damaged"):
        cbl.load(folder, net.backbone)
    (folder / "adapters.safetensors").write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"adapters.safetensors differs from what was saved: '.*' has other values"):
        cbl.load(folder, net.backbone)
    (folder / "adapters.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapters.safetensors is missing"):
        cbl.load(folder, net.backbone)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is damaged"):
        cbl.load(folder, net.backbone)
    (folder / "config.json").write_text(
        json.dumps({"format": 99, "loop": {"sites": []}, "backbone": {"tensors": {}}, "added": {}})
    )
    with pytest.raises(ValueError, match="has format 99, expected 1"):
        cbl.load(folder, net.backbone)
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*: pass the folder that net.save"):
        cbl.load(tmp_path / "nowhere", net.backbone)


def test_code_is_never_read_from_a_file(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    gate = functools.partial(Gate, scale=1.0)
    context = cbl.Context(dim=3, map=lambda features, dim: nn.Linear(features, dim, bias=False))
    net = cbl.ContextLoop(Mlp(), "first", x, adapter=gate, context=context)
    net.save(tmp_path)
    with pytest.raises(ValueError, match=r"adapters of the caller's own.*load\(..., adapter=...\)"):
        cbl.load(tmp_path, net.backbone)
    with pytest.raises(ValueError, match=r"context map of the caller's own.*load\(..., context=...\)"):
        cbl.load(tmp_path, net.backbone, adapter=gate)
    assert torch.equal(cbl.load(tmp_path, net.backbone, adapter=gate, context=context)(x), net(x))
    with pytest.raises(ValueError, match=r"the loop differs from what was saved: 'adapters.first.linear.weight' is"):
        cbl.load(tmp_path, net.backbone, adapter="film", context=context)


def test_a_save_that_fails_leaves_the_old_one(
    net: cbl.ContextLoop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"could not write .*adapters.safetensors: No space left on device"):
        net.save(folder, include_backbone=True)
    monkeypatch.undo()
    assert torch.equal(cbl.load(folder, net.backbone)(IMAGES), net(IMAGES))
    assert sorted(path.name for path in folder.iterdir()) == ["adapters.safetensors", "config.json"]


def test_write_atomically_replaces_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_atomically(target, "one")
    write_atomically(target, b"two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]
