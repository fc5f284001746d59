"""Gradient checkpointing inside a replayed backbone and around a loop gives the gradients of none at all."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchcbl as cbl
from torchcbl.adapters import Film, Token
from torchcbl.stages import checkpointing

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(5))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.dropout = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.tanh(self.norm(self.first(x))))
        rows = x[:, None]
        return self.last(x + self.attention(rows, rows, rows, need_weights=False)[0][:, 0])


class Deep(nn.Module):
    """Three blocks, the same with and without checkpointing."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.block1, self.block2, self.block3, self.head = Block(), Block(), Block(), nn.Linear(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        for block in (self.block1, self.block2, self.block3):
            x = x + self.through(block, x)
        return self.head(F.dropout(x, 0.2, self.training))

    def through(self, block: nn.Module, x: Tensor) -> Tensor:
        if self.how == "plain" or not self.training:
            return block(x)
        return checkpoint(block, x, use_reentrant=self.how == "reentrant")


def gradients(how: str, sites: list[str], kind: Callable[[str], nn.Module] = Deep, **options: object) -> list[Tensor]:
    torch.manual_seed(1)
    settings = {"adapter": functools.partial(Film, identity=False), "steps": 3, "cut": "replayed", **options}
    net = cbl.ContextLoop(kind(how), sites, X, **settings).train()  # type: ignore[arg-type]
    torch.manual_seed(2)
    r = net.refine(X)
    torch.stack([output.square().sum() for output in r.outputs]).sum().backward()
    return [r.output, *(p.grad for p in net.parameters() if p.grad is not None)]


@pytest.mark.parametrize("schedule", ["repropagate", "synchronous"])
@pytest.mark.parametrize("sites", [["block1", "block2"], ["block2.first", "block3.norm"], ["block1.norm"]])
def test_checkpointing_inside_changes_nothing(sites: list[str], schedule: str) -> None:
    plain, checkpointed = (gradients(how, sites, schedule=schedule, alpha=0.2) for how in ("plain", "frames"))
    assert len(plain) == len(checkpointed)
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


class Nested(nn.Module):
    """Checkpointed regions within checkpointed regions."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.outer, self.head = nn.Linear(6, 6), nn.ModuleList([Outer(how), Outer(how)]), nn.Linear(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for outer in self.outer:
            x = outer(x) if self.how == "plain" else checkpoint(outer, x, use_reentrant=False)
        return self.head(x)


class Outer(Deep):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.through(self.block2, self.through(self.block1, x))


@pytest.mark.parametrize("sites", [["embed"], ["outer.0.block1.first"], ["embed", "outer.0", "outer.1.block1"]])
def test_regions_within_regions(sites: list[str]) -> None:
    plain, nested = (gradients(how, sites, kind=Nested) for how in ("plain", "frames"))
    for one, other in zip(plain, nested, strict=True):
        torch.testing.assert_close(one, other)


def test_tokens_are_joined_again() -> None:
    adapter = functools.partial(Token, identity=False)
    plain, checkpointed = (gradients(how, ["block1"], adapter=adapter) for how in ("plain", "frames"))
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"'block1' runs under .* use_reentrant=True .* pass use_reentrant=False"):
        gradients("reentrant", ["block1"])


def test_an_unknown_kind_is_refused() -> None:
    def checkpoint_hook(tensor: Tensor) -> Tensor:
        return tensor

    hooks = (checkpoint_hook, checkpoint_hook)
    with pytest.raises(RuntimeError, match="'block2' runs under torch.utils.checkpoint .* checkpoint the whole loop"):
        checkpointing.wrap_recomputation(hooks, "block2", lambda recompute: recompute)
    assert not checkpointing.wrap_recomputation(None, "block2", lambda recompute: recompute)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_checkpointing_around_the_loop_changes_nothing(cut: str) -> None:
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    net = cbl.ContextLoop(backbone, "0", X, functools.partial(Film, identity=False), cut=cut)
    plain = torch.autograd.grad(net(X).sum(), list(net.parameters()))
    again = torch.autograd.grad(checkpoint(net, X, use_reentrant=False).sum(), list(net.parameters()))
    for one, other in zip(plain, again, strict=True):
        torch.testing.assert_close(one, other)


class Simple(nn.Module):
    """A backbone that could be traced, were it not for checkpointing."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.embed, self.block, self.head = nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.block(h) if self.how == "plain" else checkpoint(self.block, h, use_reentrant=self.how == "reentrant")
        return self.head(h)


def test_a_checkpointed_part_is_not_traced() -> None:
    assert cbl.ContextLoop(Simple("plain"), "embed", X).plan.kind == "traced"
    net = cbl.ContextLoop(Simple("frames"), "embed", X)
    assert net.plan.kind == "replayed"
    assert net.plan.reason == "its forward uses torch.utils.checkpoint"
    forward, calls = net.backbone.block[0].forward, []
    net.backbone.block[0].forward = lambda x: calls.append(1) or forward(x)
    net(X).sum().backward()
    assert len(calls) == 6, "each of three passes is computed again in the backward pass"
    with pytest.raises(RuntimeError, match="'block' runs under .* use_reentrant=True .* pass use_reentrant=False"):
        cbl.ContextLoop(Simple("reentrant"), "embed", X)


def test_a_site_may_stand_within_a_region() -> None:
    plain, checkpointed = (gradients(how, ["block.1"], kind=Simple) for how in ("plain", "frames"))
    for one, other in zip(plain, checkpointed, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("mode", ["frozen", "per_step"])
def test_what_is_computed_again_has_the_statistics_of_its_call(mode: str) -> None:
    torch.manual_seed(1)
    start = Deep("plain").double()
    gradients, fed = [], []
    for how in ("plain", "frames"):
        backbone = copy.deepcopy(start)
        backbone.how = how
        net = cbl.ContextLoop(backbone, ["block1"], X.double(), cut="replayed", step_norm=mode)
        torch.manual_seed(2)
        loss = sum(net.train().refine(x).output.square().sum() for x in (X.double(), 3 * X.double() + 2))
        before = [value.clone() for value in net.step_norm.buffers()]
        gradients.append(torch.autograd.grad(loss, list(backbone.parameters())))
        fed.append([bool((value == old).all()) for value, old in zip(net.step_norm.buffers(), before, strict=True)])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    assert all(all(same) for same in fed), "the backward pass has fed statistics"
