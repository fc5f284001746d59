"""What a replayed call leaves behind, and what hooks and copies see of it."""

from __future__ import annotations

import copy
import functools
import gc
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import torchcbl as cbl
from torchcbl.adapters import Film

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
CUTS = pytest.mark.parametrize("cut", ["auto", "replayed"])
AWAKE = functools.partial(Film, identity=False)


class Nest(nn.Module):
    """A part below the site and one above it, which may be computed again in the backward pass."""

    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
        self.site, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.above = nn.Sequential(nn.Tanh(), nn.Linear(8, 8))
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        low = self.below(x)
        h = self.site(low)
        high = checkpoint(self.above, h, use_reentrant=False) if self.again else self.above(h)
        return self.head(high + low)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("gradient", ["bptt", "checkpointed"])
@pytest.mark.parametrize("schedule", ["repropagate", "synchronous"])
def test_no_tensor_waits_for_the_cyclic_collector(schedule: str, gradient: str, again: bool) -> None:
    options = {"cut": "replayed", "gradient": gradient, "schedule": schedule, "alpha": 0.2}
    net = cbl.ContextLoop(Nest(again), ["site", "above.1"], X, AWAKE, **options).train()
    seen: list[weakref.ref[Tensor]] = []
    for adapter in net.adapters.values():
        adapter.register_forward_hook(lambda _, args, h: seen.extend(map(weakref.ref, (*args, h))))
    gc.collect()
    gc.disable()
    try:
        net(X).sum().backward()
        net(X)  # without a backward pass, which would free the graph
        assert len(seen) >= 24
        assert not any(tensor() is not None for tensor in seen)
    finally:
        gc.enable()


@CUTS
@pytest.mark.parametrize("late", [False, True])
def test_backward_hooks_of_containers_are_called(cut: str, late: bool) -> None:
    backbone, calls = Nest(), []
    net = cbl.ContextLoop(backbone, "site", X, AWAKE, cut=cut) if late else None
    for name in ("below", "above"):
        module = backbone.get_submodule(name)
        module.register_full_backward_hook(lambda *_, name=name: calls.append(name))
        module.register_full_backward_pre_hook(lambda *_, name=name: calls.append(f"pre {name}"))
    net = cbl.ContextLoop(backbone, "site", X, AWAKE, cut=cut) if net is None else net
    assert net.plan.kind == ("traced" if late and cut == "auto" else "replayed")
    calls.clear()
    x = X.clone().requires_grad_()
    net.refine(x, steps=3).output.sum().backward()
    counts = {name: calls.count(name) for name in calls}
    assert counts == {"pre above": 4, "above": 4, "pre below": 1, "below": 1}, "below the site all is computed once"
    theirs = torch.autograd.grad(copy.deepcopy(net).refine(x, steps=3).output.sum(), x)[0]
    torch.testing.assert_close(x.grad, theirs)


class Table(nn.Module):
    """Keeps a table of positions, which it makes anew for longer inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5))
        self.site, self.above, self.head = nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4)
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        if self.table is None or self.table.shape[0] < length:
            self.table = torch.arange(float(length))[:, None].cos()
        return self.head(self.above(self.site(self.below(x) + self.table[:length]))).mean(1)


@pytest.mark.parametrize("gradient", ["bptt", "phantom"])
def test_a_call_that_renews_what_the_backbone_keeps(gradient: str) -> None:
    x = torch.randn(3, 7, 6)
    net = cbl.ContextLoop(Table(), "site", x[:, :4], AWAKE, gradient=gradient).train()
    assert net.plan.kind == "replayed"
    found = []
    for _ in range(2):  # the second call finds a table that is long enough
        torch.manual_seed(0)
        y = net(x)
        found.append((y, *torch.autograd.grad(y.square().sum(), list(net.parameters())), torch.get_rng_state()))
    for renewed, expected in zip(*found, strict=True):
        torch.testing.assert_close(renewed, expected)


class Drifts(Nest):
    """Takes a longer path at every call in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        low = self.below(x)
        for _ in range(self.calls):
            low = low + 0
        return self.head(self.above(self.site(low)))


def test_a_path_that_is_lost_again_is_an_error() -> None:
    net = cbl.ContextLoop(Drifts(), "site", X).train()
    with pytest.raises(RuntimeError, match="in a replay Drifts called .*: its forward must take the same path"):
        net(X)


class CopiesItsDict(nn.Linear):
    """A module that copies itself by hand."""

    def __deepcopy__(self, memo: dict[int, object]) -> CopiesItsDict:
        made = self.__class__.__new__(self.__class__)
        memo[id(self)] = made
        made.__dict__ = copy.deepcopy(self.__dict__, memo)
        return made


def by_pickle(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, by_pickle])
def test_copies_made_in_a_replayed_call_are_free_of_it(make: Callable[[nn.Module], nn.Module], hooked: bool) -> None:
    backbone, copies = Nest(), []
    backbone.above[1] = CopiesItsDict(8, 8)
    backbone.site.forward = functools.partial(nn.Linear.forward, backbone.site)  # as accelerate puts its own there
    if hooked:
        backbone.above.register_forward_hook(_double)
    net = cbl.ContextLoop(backbone, "site", X, AWAKE, cut="replayed").eval()

    def work() -> None:
        copies.append(make(backbone))

    def copy_elsewhere(*_: object) -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    expected = net(X)
    net.context.register_forward_hook(copy_elsewhere)
    assert torch.equal(net(X), expected)
    assert len(copies) == 2
    for made in copies:
        assert not {"forward", "_call_impl", "__getstate__"} & set(vars(made))
        if make is not copy.copy:
            assert {"forward", "_call_impl", "__getstate__"} & set(vars(made.site)) == {"forward"}
        assert torch.equal(made(X), backbone(X))
        with torch.no_grad():
            made.head.bias.add_(1)
        assert torch.equal(made(X), backbone(X)) == (make is copy.copy), "a copy has weights of its own"
        loop = cbl.ContextLoop(made, "site", X, AWAKE, cut="replayed")
        assert torch.equal(loop.refine(X).outputs[0], made(X))


def _double(module: nn.Module, args: object, output: Tensor) -> Tensor:
    return 2 * output


LOCKED_IN = """
import gc, threading, time
from torch import nn
from torchcbl.stages.noise import generator_states

def work():
    for _ in range(50):
        generator_states(module)

module = nn.Linear(2, 2)
gc.set_threshold(1)
gc.callbacks.append(lambda *_: time.sleep(1e-4))  # as freeing a tensor does, it lets other threads run
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert gc.isenabled()
"""


def test_threads_that_note_generators_do_not_wait_for_each_other_for_ever() -> None:
    """With torch.get_rng_state in place of the module's own way this hangs."""
    subprocess.run([sys.executable, "-c", LOCKED_IN], check=True, timeout=120)
