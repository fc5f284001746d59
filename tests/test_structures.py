"""What backbones return and take: tuples, dicts, dataclasses, packed sequences, grids, keyword arguments."""

from __future__ import annotations

import copy
import functools
from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import torchcbl as cbl
from backbones import CASES, Dense, Mlp, ResidualCnn
from torchcbl.adapters import Film
from torchcbl.backbone.layout import Layout, find_layout

AWAKE = functools.partial(Film, identity=False)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


class Packed(nn.Module):
    """A classifier of sequences of many lengths, with the recurrent net of one's choice."""

    def __init__(self, kind: str, bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 5)
        self.rnn = getattr(nn, kind)(5, 8, batch_first=True, bidirectional=bidirectional)
        self.top = nn.GRU(8 * (1 + bidirectional), 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embed(tokens), lengths, batch_first=True, enforce_sorted=False)
        _, last = self.top(self.rnn(packed)[0])
        return self.head(last[-1])


TOKENS = torch.randint(1, 20, (4, 7), generator=torch.Generator().manual_seed(5))
LENGTHS = torch.tensor([3, 7, 1, 5])


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_packed_sequences(kind: str, bidirectional: bool) -> None:
    torch.manual_seed(0)
    backbone = Packed(kind, bidirectional).eval()
    net = cbl.ContextLoop(backbone, ["rnn"], (TOKENS, LENGTHS), AWAKE, cbl.Context(dim=4), steps=3)
    assert net.sites[0].shape == (4, 7, 8 * (1 + bidirectional))
    assert net.sites[0].channel_dim == 2
    together = net.refine(TOKENS, LENGTHS)
    assert torch.equal(together.outputs[0], backbone(TOKENS, LENGTHS))
    assert not torch.equal(together.output, together.outputs[0])
    for index, length in enumerate(LENGTHS.tolist()):
        alone = net(TOKENS[index : index + 1, :length], LENGTHS[index : index + 1])
        torch.testing.assert_close(alone[0], together.output[index])

    z = net.context(together.outputs[0])
    packed = pack_padded_sequence(backbone.embed(TOKENS), LENGTHS, batch_first=True, enforce_sorted=False)
    h, _ = pad_packed_sequence(backbone.rnn(packed)[0], batch_first=True)
    refined = pack_padded_sequence(net.adapters["rnn"](h, z), LENGTHS, batch_first=True, enforce_sorted=False)
    torch.testing.assert_close(together.outputs[1], backbone.head(backbone.top(refined)[1][-1]))


def test_a_tuple_keeps_its_other_parts() -> None:
    torch.manual_seed(0)
    case = CASES["lstm"]
    backbone = case.build().eval()
    net = cbl.ContextLoop(backbone, ["lstm"], case.example(), AWAKE)
    x = case.example()
    r = net.refine(x, steps=1)
    assert net.sites[0].shape == (3, 6, 8), "the batch, which stands on axis 1 inside, is not read first"
    h, (last, _) = backbone.lstm(backbone.embed(x).transpose(0, 1))
    new = net.adapters["lstm"](h.transpose(0, 1), net.context(r.outputs[0])).transpose(0, 1)
    torch.testing.assert_close(r.output, backbone.head(backbone.gru(new)[0].mean(0) + last[-1]))


class Named(NamedTuple):
    score: str
    logits: Tensor


@dataclass
class Record:
    loss: Tensor | None
    logits: Tensor
    notes: str = "kept"


class Returns(nn.Module):
    """Logits in a container of one's choice, with a loss where labels are given."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body, self.head = kind, nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, labels: Tensor | None = None) -> object:
        logits = self.head(torch.tanh(self.body(x)))
        loss = None if labels is None else F.cross_entropy(logits, labels)
        if self.kind == "dataclass":
            return Record(loss, logits)
        if self.kind == "namedtuple":
            return Named("a", logits)
        if self.kind == "nested":
            return {"aux": [x], "out": {"deep": logits}}
        plain = {"loss": loss, "logits": logits}
        return {"dict": plain, "ordered": OrderedDict(plain), "tuple": (logits, x), "list": [logits, x]}[self.kind]


def logits_of(returned: object) -> Tensor:
    if isinstance(returned, dict):
        found = returned.get("logits", returned.get("out"))
        return found["deep"] if isinstance(found, dict) else found
    return returned.logits if hasattr(returned, "logits") else returned[0]  # type: ignore[attr-defined, index]


@pytest.mark.parametrize("kind", ["dataclass", "namedtuple", "dict", "ordered", "tuple", "list"])
def test_the_backbone_s_own_type_comes_back(kind: str) -> None:
    torch.manual_seed(0)
    backbone = Returns(kind).eval()
    net = cbl.ContextLoop(backbone, ["body"], X, AWAKE)
    r = net.refine(X)
    assert type(net(X)) is type(backbone(X)) is type(r.returned)
    assert torch.equal(logits_of(net(X)), r.output)
    assert torch.equal(logits_of(backbone(X)), r.outputs[0])
    assert not torch.equal(r.output, r.outputs[0])


@pytest.mark.parametrize("kind", ["dataclass", "dict"])
def test_a_loss_from_labels_is_that_of_the_last_step(kind: str) -> None:
    torch.manual_seed(0)
    labels = torch.tensor([0, 1, 2, 0])
    net = cbl.ContextLoop(Returns(kind), ["body"], {"x": X}, AWAKE)
    returned = net(x=X, labels=labels)
    loss = returned["loss"] if kind == "dict" else returned.loss
    torch.testing.assert_close(loss, F.cross_entropy(net.refine(x=X).output, labels))
    loss.backward()
    assert net.backbone.body.weight.grad is not None


def test_the_output_can_be_named() -> None:
    net = cbl.ContextLoop(Returns("tuple"), ["body"], X, AWAKE, output=0)
    assert net.refine(X).output.shape == (4, 3)
    with pytest.raises(ValueError, match="cannot move the output"):
        cbl.ContextLoop(Returns("tuple"), ["body"], X, output=1)
    nested = cbl.ContextLoop(Returns("nested"), ["body"], X, AWAKE, output="out")
    assert nested.refine(X).output.shape == (4, 3)
    with pytest.raises(ValueError, match="output='logits' is not in the dict that Returns returns"):
        cbl.ContextLoop(Returns("nested"), ["body"], X, output="logits")


def test_layouts_read_and_write() -> None:
    packed = pack_padded_sequence(torch.randn(3, 4, 2), torch.tensor([2, 4, 1]), True, enforce_sorted=False)
    for output in (packed, (packed, 1), {"h": packed}):
        layout = find_layout(output)
        assert layout is not None
        again = layout.write(output, layout.read(output) * 2)
        torch.testing.assert_close(layout.read(again), layout.read(output) * 2)
    assert isinstance(layout.read({"h": packed}), Tensor)
    assert isinstance(find_layout(packed), Layout)
    assert find_layout("text") is None
    assert find_layout((1, "a")) is None
    with pytest.raises(TypeError, match=r"expected a tensor at \[0\]"):
        Layout(path=(0,)).read(("no tensor",))
    assert isinstance(find_layout(packed).write(packed, layout.read({"h": packed})), PackedSequence)


def test_a_grid_of_contexts_is_resized_to_each_site() -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(Dense(), ["down1", "down2"], IMAGES, AWAKE, cbl.Context(dim=5)).eval()
    r = net.refine(IMAGES, steps=1)
    z = net.context(r.outputs[0])
    assert z.shape == (4, 8, 8, 5)
    b, adapters = net.backbone, net.adapters
    gamma, beta = adapters["down1"].linear(z).movedim(-1, 1).chunk(2, dim=1)
    first = F.relu((1 + gamma) * b.down1(IMAGES) + beta)
    gamma, beta = (
        F.adaptive_avg_pool2d(part, (4, 4)) for part in adapters["down2"].linear(z).movedim(-1, 1).chunk(2, dim=1)
    )
    second = F.relu((1 + gamma) * b.down2(first) + beta)
    up = F.interpolate(F.relu(b.up(second)), scale_factor=2)
    torch.testing.assert_close(r.output, b.head(torch.cat([up, first], dim=1)))
    pooled = cbl.ContextLoop(Dense(), ["down1"], IMAGES, AWAKE, cbl.Context(dim=5, per="sample"))
    assert pooled.context(r.output).shape == (4, 5)
    torch.testing.assert_close(pooled.context(r.output), pooled.context.map(r.output.mean((2, 3))))


class Mismatched(nn.Module):
    """Outputs at half as many positions as the site has."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x)).unflatten(1, (-1, 2)).mean(2))


def test_positions_that_do_not_match() -> None:
    x = torch.randn(2, 6, 5)
    with pytest.raises(ValueError, match=r"positions \(3,\), but the hidden states of site 'body' .*per='sample'"):
        cbl.ContextLoop(Mismatched(), ["body"], x)
    assert cbl.ContextLoop(Mismatched(), ["body"], x, context=cbl.Context(per="sample")).audit().dead == ()
    assert cbl.ContextLoop(Mismatched(), ["body"], x, adapter="attention").audit().dead == ()
    with pytest.raises(
        ValueError, match=r"Context\(per='position'\) needs positions, but its source 'logits' has shape"
    ):
        cbl.ContextLoop(Mlp(), ["first"], X, context=cbl.Context(per="position"))
    with pytest.raises(ValueError, match="Context.per must be"):
        cbl.Context(per="token")


@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_channels_last_and_bfloat16(cut: str) -> None:
    torch.manual_seed(0)
    backbone = ResidualCnn().eval().to(memory_format=torch.channels_last)
    x = IMAGES.to(memory_format=torch.channels_last)
    net = cbl.ContextLoop(backbone, ["stem", "block1"], x, AWAKE, cut=cut).eval()
    torch.testing.assert_close(net(x), net(IMAGES), rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = net.refine(x)
        low.output.float().square().sum().backward()
    assert low.output.dtype == torch.bfloat16
    torch.testing.assert_close(low.output.float(), net(x), rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_frozen_backbone_stays_bit_for_bit(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(ResidualCnn(), ["stem", "block1"], IMAGES)
    assert net.freeze_backbone() is net
    before = copy.deepcopy(net.backbone.state_dict())
    assert {id(p) for p in net.adapter_parameters()} == {id(p) for p in net.parameters() if p.requires_grad}
    added = sum(p.numel() for p in net.adapter_parameters())
    total = sum(p.numel() for p in net.parameters())
    net.print_trainable_parameters()
    assert capsys.readouterr().out == f"trainable parameters: {added:,} of {total:,} ({added / total:.2%})\n"
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    start = [p.detach().clone() for p in net.adapter_parameters()]
    for _ in range(3):
        net.train()
        optimiser.zero_grad()
        cbl.refinement_loss(net.refine(IMAGES), torch.tensor([0, 1, 2, 3])).backward()
        optimiser.step()
    assert net.training
    assert not any(module.training for module in net.backbone.modules())
    assert all(torch.equal(value, before[name]) for name, value in net.backbone.state_dict().items())
    assert not any(torch.equal(old, new) for old, new in zip(start[:2], net.adapter_parameters(), strict=False))
    net.freeze_backbone(False)
    assert all(p.requires_grad for p in net.parameters())
    assert net.backbone.training


def test_hooks_that_are_there_are_called() -> None:
    backbone = ResidualCnn().eval()
    calls: list[str] = []
    backbone.block1.register_forward_hook(lambda *_: calls.append("block1"))
    backbone.fc.register_forward_hook(lambda module, args, output: output * 2)
    net = cbl.ContextLoop(backbone, ["stem"], IMAGES)
    calls.clear()
    assert torch.equal(net(IMAGES), backbone(IMAGES))
    assert calls == ["block1"] * 4


def test_memory_may_be_shared() -> None:
    net = cbl.ContextLoop(ResidualCnn(), ["stem"], IMAGES).eval()
    expected = net(IMAGES)
    net.share_memory()
    assert all(p.is_shared() for p in net.parameters())
    assert torch.equal(net(IMAGES), expected)
