"""Backbones that are compiled, scripted, stateful or without gradients: what works, and what is refused by name."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.adapters import Film

AWAKE = functools.partial(Film, identity=False)
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.b = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(torch.tanh(self.a(x)))))


def make() -> Net:
    torch.manual_seed(0)
    return Net()


def loop(backbone: nn.Module, site: str = "a") -> cbl.ContextLoop:
    torch.manual_seed(1)
    return cbl.ContextLoop(backbone, [site], X, AWAKE)


def compiled_whole(net: Net) -> nn.Module:
    return torch.compile(net, backend="eager")


def compiled_in_place(net: Net) -> nn.Module:
    net.compile(backend="eager")
    return net


def compiled_part(net: Net) -> nn.Module:
    net.b = torch.compile(net.b, backend="eager")
    return net


def part_compiled_in_place(net: Net) -> nn.Module:
    net.b.compile(backend="eager")
    return net


def scripted_part(net: Net) -> nn.Module:
    net.b = torch.jit.script(net.b)
    return net


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "change", [compiled_whole, compiled_in_place, compiled_part, part_compiled_in_place, scripted_part]
)
def test_compiled_backbones_give_the_same(change: object) -> None:
    expected = loop(make())
    backbone = change(make())  # type: ignore[operator]
    backbone(X)
    net = loop(backbone)
    torch.testing.assert_close(net(X), expected(X))
    for one, other in zip(net.refine(X, steps=4).outputs, expected.refine(X, steps=4).outputs, strict=True):
        torch.testing.assert_close(one, other)
    net(X).square().sum().backward()
    expected(X).square().sum().backward()
    for (_, one), (_, other) in zip(net.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_sites_in_compiled_code_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'b\._orig_mod\.0' lies inside 'b', which is compiled .* compile the loop"):
        loop(compiled_part(make()), "b._orig_mod.0")
    with pytest.raises(ValueError, match=r"'b\.0' lies inside 'b', which is scripted .*the Python module"):
        loop(scripted_part(make()), "b.0")
    with pytest.raises(ValueError, match="site 'b' is scripted"):
        loop(scripted_part(make()), "b")
    assert loop(compiled_part(make()), "b").audit().dead == ()


class WithoutGradients(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.a(x)
        return self.head(self.b(h))


class WritesItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(2.0))


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mean: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.mean = x.detach() if self.mean is None else 0.9 * self.mean + 0.1 * x.detach().roll(1, 0)
        return x + self.mean


class Counts(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) + self.calls


class Windows(Net):
    """Folds two positions of each sample into the batch, as windowed attention does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.repeat_interleave(2, 0)).view(len(x), 2, 3).mean(1)


class Turns(Net):
    """Runs its two layers in an order that depends on the input."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        first, second = (self.b[0], self.b[2]) if float(x.detach().sum()) < 100 else (self.b[2], self.b[0])
        return self.head(second(torch.tanh(first(h))))


@pytest.mark.parametrize(
    ("backbone", "site", "message"),
    [
        (WithoutGradients(), "a", r"site 'a' runs under torch.no_grad .* call net.freeze_backbone\(\)"),
        (WritesItsInput(), "a", "WritesItsInput writes into its input, .* or clone the input there first"),
        (
            nn.Sequential(nn.Linear(6, 8), Remembers(), nn.Linear(8, 3)),
            "0",
            "two different outputs .* first in what '1' returns: .* keeps no state between calls",
        ),
        (Counts(), "a", "Counts gives two different outputs for the same example in eval mode: "),
        (Windows(), "a", "site 'a' has hidden states of shape .* folds positions into the batch axis"),
    ],
)
def test_refused_by_name(backbone: nn.Module, site: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cbl.ContextLoop(backbone, [site], X.clone())


def test_a_site_without_a_batch() -> None:
    class Biased(Net):
        def __init__(self) -> None:
            super().__init__()
            self.c = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.c(torch.ones(5, 6)).mean(0)

    with pytest.raises(ValueError, match="site 'c' has hidden states of shape .* no axis is the batch"):
        cbl.ContextLoop(Biased(), ["c"], X)


def test_sites_that_change_places() -> None:
    net = cbl.ContextLoop(Turns(), ["a", "b.0", "b.2"], X, AWAKE)
    assert net.plan.kind == "replayed"
    with pytest.raises(RuntimeError, match=r"ran site 'b\.0' after one that it ran before"):
        net(X + 100)


def test_a_copy_of_a_compiled_backbone_s_loop() -> None:
    net = loop(compiled_part(make()))
    torch.testing.assert_close(copy.deepcopy(net)(X), net(X))
