"""Saving and loading."""

from __future__ import annotations

import functools
import json
import os
import stat
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

import torchcbl as cbl
from backbones import Mlp, ResidualCnn
from torchcbl.adapters import Attention, Film, Gate, restore_adapters
from torchcbl.files import finish, unfinished, write_atomically
from torchcbl.sharing.card import model_card

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


@pytest.mark.parametrize("include_backbone", [False, True])
def test_what_is_added_keeps_the_dtype_it_was_saved_in(tmp_path: Path, include_backbone: bool) -> None:
    x = torch.randn(4, 6).bfloat16()
    net = cbl.ContextLoop(Mlp().bfloat16(), ["first", "second"], x, adapter={"first": "film", "second": "concat"})
    net.adapters.float()
    net.context.float()
    with torch.no_grad():
        for parameter in net.adapter_parameters():
            parameter.normal_(std=0.3)
    net.save(tmp_path, include_backbone=include_backbone)
    with torch.inference_mode():
        again = cbl.load(tmp_path, net.backbone)
    assert all(torch.equal(one, other) for one, other in zip(again.parameters(), net.parameters(), strict=True))
    assert {parameter.dtype for parameter in again.adapter_parameters()} == {torch.float32}
    assert torch.equal(again(x), net(x))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(again(x), net(x))
        again(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in again.adapter_parameters())


def test_the_backbone_comes_along_on_request(net: cbl.ContextLoop, folder: Path) -> None:
    net.save(folder, include_backbone=True)
    assert torch.equal(cbl.load(folder, ResidualCnn().eval())(IMAGES), net(IMAGES))
    net.save(folder)
    assert not (folder / "backbone.safetensors").exists()


def test_a_trace_is_not_insisted_on(tmp_path: Path) -> None:
    x, backbone = torch.randn(3, 6), Mlp()
    net = cbl.ContextLoop(backbone, "first", x, steps=3)
    net.save(tmp_path)
    path = tmp_path / "config.json"
    text = path.read_text()
    assert (net.plan.kind, json.loads(text)["loop"]["cut"]) == ("traced", "auto")
    backbone.first.register_forward_hook(lambda *_: None)
    for written in (text, text.replace('"cut": "auto"', '"cut": "traced"')):  # which older saves say
        path.write_text(written)
        again = cbl.load(tmp_path, backbone)
        assert again.plan.kind == "replayed"
        assert torch.equal(again(x), net(x))
    cbl.ContextLoop(backbone, "first", x, cut="replayed").save(tmp_path)
    assert json.loads(path.read_text())["loop"]["cut"] == "replayed"


class Noted(nn.Linear):
    """Has more in its state than tensors."""

    note = "new"

    def get_extra_state(self) -> dict[str, str]:
        return {"note": self.note}

    def set_extra_state(self, state: object) -> None:
        raise AssertionError("it was not saved")


@pytest.mark.parametrize("include_backbone", [False, True])
def test_state_that_is_no_tensor_is_left_alone(tmp_path: Path, include_backbone: bool) -> None:
    x, backbone = torch.randn(3, 6), nn.Sequential(Noted(6, 4), nn.ReLU(), nn.Linear(4, 3))
    net = cbl.ContextLoop(backbone, "1", x, context=cbl.Context(dim=3, map=Noted))
    net.save(tmp_path, include_backbone=include_backbone)
    twin = nn.Sequential(Noted(6, 4), nn.ReLU(), nn.Linear(4, 3)) if include_backbone else backbone
    again = cbl.load(tmp_path, twin, context=cbl.Context(dim=3, map=Noted))
    assert torch.equal(again(x), net(x))


def test_quantised_weights_that_stand_for_others(tmp_path: Path) -> None:
    x, backbone = torch.randn(3, 6), nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    weight = backbone[2].weight.detach()
    backbone[2].weight = nn.Parameter(TwoTensor(weight.clone(), weight.clone()))  # a stand-in for torchao's
    net = cbl.ContextLoop(backbone, "1", x)
    with pytest.raises(ValueError, match=r"'2.weight' is a TwoTensor, which safetensors cannot hold"):
        net.save(tmp_path, include_backbone=True)
    net.save(tmp_path)
    assert torch.equal(cbl.load(tmp_path, backbone)(x), net(x))
    with torch.no_grad():
        backbone[2].weight.b.add_(1)
    with pytest.raises(ValueError, match=r"'2.weight' has other values\."):
        cbl.load(tmp_path, backbone)


@pytest.mark.filterwarnings("ignore:.*quantiz")
def test_quantised_layers_that_pack_their_weights(tmp_path: Path) -> None:
    x = torch.randn(3, 6)

    def quantised(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        network = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
        return torch.ao.quantization.quantize_dynamic(network, {"2"}, torch.qint8)

    net = cbl.ContextLoop(quantised(0), "1", x)
    with pytest.raises(ValueError, match=r"'2\._packed_params\.\w+' is a \w+, which safetensors cannot hold"):
        net.save(tmp_path, include_backbone=True)
    net.save(tmp_path)
    assert torch.equal(cbl.load(tmp_path, quantised(0))(x), net(x))
    other = quantised(0)
    other[2].set_weight_bias(quantised(1)[2].weight(), other[2].bias())
    with pytest.raises(ValueError, match=r"'2._packed_params._packed_params' has other values"):
        cbl.load(tmp_path, other)


def test_other_weights_are_refused_by_name(net: cbl.ContextLoop, folder: Path) -> None:
    with torch.no_grad():
        net.backbone.fc.bias[0] += 1
    with pytest.raises(ValueError, match=r"the backbone differs from what was saved: 'fc.bias' has other values\."):
        cbl.load(folder, net.backbone)


def test_a_compiled_backbone_is_the_one_it_was_made_from(net: cbl.ContextLoop, folder: Path) -> None:
    again = cbl.load(folder, torch.compile(net.backbone, backend="eager"))
    assert again.backbone is net.backbone
    assert torch.equal(again(IMAGES), net(IMAGES))


def test_a_class_is_no_backbone(folder: Path) -> None:
    with pytest.raises(
        TypeError, match="load needs the network to put the loop around, an nn.Module, got the class Mlp"
    ):
        cbl.load(folder, Mlp)  # type: ignore[arg-type]


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
    with pytest.raises(ValueError, match="has format 99, expected 2"):
        cbl.load(folder, net.backbone)
    with pytest.raises(FileNotFoundError, match=r"no config.json in .*: pass the folder that net.save"):
        cbl.load(tmp_path / "nowhere", net.backbone)


class LooksForTheEnd(nn.Module):
    """Answers at its last token 2, as BART's classifier does at its last <eos>, and fails without one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.middle, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h = torch.tanh(self.middle(self.embed(ids)))
        if not bool((ids == 2).any(1).all()):
            raise ValueError("every sample must hold token 2")
        return self.head(h[ids == 2].view(len(ids), -1, 8)[:, -1])


def test_an_example_of_one_s_own_is_for_backbones_that_fail_on_a_made_up_one(tmp_path: Path) -> None:
    ids = torch.tensor([[5, 7, 2], [9, 3, 2]])
    net = cbl.ContextLoop(LooksForTheEnd(), "middle", ids, functools.partial(Film, identity=False))
    net.save(tmp_path)
    message = r"LooksForTheEnd fails on a batch that is made up .*\(ValueError: every sample .*own, example=\.\.\."
    for fails in (net.audit, net.export, lambda: model_card(net), lambda: cbl.load(tmp_path, net.backbone)):
        with pytest.raises(ValueError, match=message):
            fails()
    for load in (cbl.load, cbl.ContextLoop.from_pretrained):
        assert torch.equal(load(tmp_path, net.backbone, example=ids)(ids), net(ids))
    card = model_card(net, example=ids)
    assert "torchcbl.load(folder, backbone, example=example)" in card
    assert "measured on an example" in card


def own_gate(site: cbl.Site, context_dim: int) -> nn.Module:
    return Gate(site, context_dim, scale=1.0)


def test_code_is_never_read_from_a_file(tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    gate = own_gate
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


def test_a_save_that_fails_at_its_second_file_leaves_the_old_one(
    net: cbl.ContextLoop, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net.save(folder, include_backbone=True)
    expected, sync, calls = net(IMAGES), os.fsync, iter(range(2))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)

    def full(descriptor: int) -> None:
        if next(calls):
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"could not write .*backbone.safetensors: No space left on device"):
        net.save(folder, include_backbone=True)
    monkeypatch.undo()
    assert torch.equal(cbl.load(folder, ResidualCnn().eval())(IMAGES), expected)
    assert len(list(folder.iterdir())) == 3


def test_who_may_read_a_file_is_left_to_the_umask(tmp_path: Path) -> None:
    streamed = tmp_path / "streamed.bin"
    before = os.umask(0o077)
    try:
        write_atomically(tmp_path / "file.txt", "one")
        with unfinished(streamed) as stream:
            finish(stream, streamed)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file.txt").stat().st_mode) == 0o600
    assert stat.S_IMODE(streamed.stat().st_mode) == 0o600


def test_write_atomically_replaces_whole_files(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    write_atomically(target, "one")
    write_atomically(target, b"two")
    assert target.read_text() == "two"
    assert [path.name for path in target.parent.iterdir()] == ["file.txt"]


def test_a_streamed_file_takes_its_name_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "waves.bin"
    write_atomically(target, "old")
    with pytest.raises(TypeError, match="bytes"), unfinished(target) as stream:
        stream.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert target.read_text() == "old"
    with unfinished(target) as stream:
        stream.write(b"ne")
        assert target.read_text() == "old"
        stream.write(b"w")
        finish(stream, target)
    with unfinished(target) as stream:  # never finished
        stream.write(b"other")
    assert target.read_text() == "new"
    assert [path.name for path in target.parent.iterdir()] == ["waves.bin"]


def test_ctrl_c_in_the_middle_of_a_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file.txt", "one")
    assert not list(tmp_path.iterdir())


def renamed(backbone: nn.Module, old: str, new: str) -> nn.Module:
    """Rename a direct submodule, in its place."""
    modules = [(new if name == old else name, module) for name, module in backbone.named_children()]
    for name, _ in modules:
        backbone._modules.pop(old if name == new else name)
    for name, module in modules:
        backbone.add_module(name, module)
    return backbone


def refusal(folder: Path, backbone: nn.Module) -> str:
    with pytest.raises(ValueError, match="the backbone differs from what was saved: ") as caught:
        cbl.load(folder, backbone)
    return str(caught.value)


def test_a_renamed_module_is_refused_with_its_new_name(net: cbl.ContextLoop, folder: Path) -> None:
    state = net.backbone.state_dict()
    message = refusal(folder, renamed(net.backbone, "block1", "stage1"))
    assert "site 'block1' is not in ResidualCnn, it is now 'stage1'; " in message
    count = sum(name.startswith("block1.") for name in state)
    assert f"renamed: 'block1.*' is now 'stage1.*' ({count} tensors, same values). Load with the same" in message
    assert "missing" not in message
    assert "not in the save" not in message


def test_a_renamed_tensor_is_refused_with_its_new_name(net: cbl.ContextLoop, folder: Path) -> None:
    stem = net.backbone.stem
    stem.kernel = stem.weight
    del stem.weight
    assert "saved: renamed: 'stem.weight' is now 'stem.kernel' (same values). Load" in refusal(folder, net.backbone)


def test_a_wrapped_backbone_is_refused_with_the_prefix(net: cbl.ContextLoop, folder: Path) -> None:
    message = refusal(folder, nn.Sequential(net.backbone))
    assert "site 'block1' is not in Sequential, it is now '0.block1'; site 'block2'" in message
    assert f"renamed: '*' is now '0.*' ({len(net.backbone.state_dict())} tensors, same values). Load" in message


def test_a_site_without_tensors_is_missed_too(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    backbone = nn.Sequential()
    for name, module in {"low": nn.Linear(4, 6), "act": nn.ReLU(), "head": nn.Linear(6, 2)}.items():
        backbone.add_module(name, module)
    cbl.ContextLoop(backbone, "act", x, context=cbl.Context(dim=3, source="act")).save(tmp_path / "one")
    cbl.ContextLoop(backbone, "low", x, context=cbl.Context(dim=3, source="act")).save(tmp_path / "two")
    renamed(backbone, "act", "relu")
    for folder, role in (("one", "site and context source"), ("two", "context source")):
        assert f"saved: {role} 'act' is not in Sequential. Load" in refusal(tmp_path / folder, backbone)


def test_each_kind_of_difference_is_named_and_none_at_length(net: cbl.ContextLoop, folder: Path) -> None:
    other = ResidualCnn()
    del other.block2
    other.extra = nn.ModuleList([nn.Linear(2, 2) for _ in range(20)])
    other.fc = nn.Linear(6, 5)
    message = refusal(folder, other)
    assert "site 'block2' is not in ResidualCnn" in message
    assert "'block2.conv1.weight' is missing; " in message
    assert "more missing; 'extra.0.weight' is not in the save; " in message
    assert "and 37 more not in the save; 'fc.weight' is float32 [5, 6], expected float32 [4, 6]; " in message
    assert "'stem.weight' has other values" in message
    assert len(message) < 1200


def test_a_damaged_manifest_is_refused(net: cbl.ContextLoop, folder: Path) -> None:
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for entry, key, value, found in [
        ("loop", "sites", [1], r"loop.sites is \[1\]"),
        ("loop", "steps", "2", "loop.steps is '2'"),
        ("loop", "context", {"dim": 5, "source": "logits", "detach": False}, "KeyError: 'map'"),
        ("loop", "context", {"dim": 5, "map": "os.system"}, "loop.context.map is 'os.system'"),
        ("loop", "context", {"dim": 5, "map": None, "else": 1}, "else"),
        ("loop", "context", {"dim": 0, "map": None}, "Context.dim must be at least 1"),
        ("backbone", "included", 1, "backbone.included is 1"),
        ("backbone", "tensors", {"fc.bias": None}, "the entry of tensor 'fc.bias' is None"),
        ("backbone", "tensors", None, "AttributeError"),
    ]:
        path.write_text(json.dumps({**whole, entry: {**whole[entry], key: value}}))
        with pytest.raises(ValueError, match=f"config.json is damaged .*{found}.*: save the loop again"):
            cbl.load(folder, net.backbone)


def test_options_of_known_adapters_are_kept(tmp_path: Path) -> None:
    x = torch.randn(2, 6)
    choice = {
        "first": functools.partial(Attention, tokens=2, identity=False),
        "second": functools.partial(Gate, scale=1.0),
    }
    net = cbl.ContextLoop(Mlp(), ["first", "second"], x, choice).eval()
    net.save(tmp_path)
    again = cbl.load(tmp_path, net.backbone)
    assert torch.equal(again(x), net(x))
    assert again.config.adapter == {
        "first": 'attention {"tokens": 2, "identity": false}',
        "second": 'gate {"scale": 1.0}',
    }
    with pytest.raises(ValueError, match="adapter 'flim' of the save is unknown: there are 'film'"):
        restore_adapters('flim {"a": 1}')
