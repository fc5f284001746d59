"""No Jacobian that gradient ascent finds is larger than a certificate: random networks, and ones made to deceive."""

from __future__ import annotations

import types
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchcbl as cbl
from subject import awaken
from torchcbl.backbone.calls import Call
from torchcbl.theory.certificate import Certifier
from torchcbl.theory.reach import NoBoundError, Reach
from torchcbl.theory.space import opened

Function = Callable[[Tensor], Tensor]


def largest_norm(f: Function, points: Tensor, ascents: int = 3) -> Tensor:
    """The largest spectral norm of df/ds for each sample that a few ascents from points (B, N) find, (B,)."""
    best = torch.zeros(len(points), dtype=points.dtype)
    for scale in (0.1, 1.0, 10.0):
        s = points + scale * torch.randn(points.shape, dtype=points.dtype)
        for _ in range(ascents):
            s = s.detach().requires_grad_()
            value = f(s)
            rows = [
                torch.autograd.grad(column.sum(), s, create_graph=True, allow_unused=True, materialize_grads=True)[0]
                for column in value.unbind(1)
            ]
            norm = torch.linalg.matrix_norm(torch.stack(rows, dim=1), ord=2)
            best = torch.maximum(best, norm.detach())
            if not norm.requires_grad:
                break
            (uphill,) = torch.autograd.grad(norm.sum(), s, allow_unused=True, materialize_grads=True)
            s = s + scale * uphill / uphill.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return best


def above(net: cbl.ContextLoop, x: Tensor) -> tuple[Tensor, Tensor]:
    """What is certified of the network above its one site, from h to y, and the largest norm found there."""
    certifier = Certifier(net, Call((x,)).detached(), at_call=True)
    bound = certifier.walk(lambda _, h, shape: Reach(torch.ones(1, dtype=torch.float64), h.size)).factor
    with opened(net, Call((x,))) as space:
        g = space.g
        h = g.first.states[0]

        def run(s: Tensor) -> Tensor:
            state = s.reshape(h.shape).clone()
            return net.read_output(g.cut.rerun(g.first, lambda *_: state, 1).returned).flatten(1)

        return bound, largest_norm(run, h.detach().flatten(1))


def check(net: cbl.ContextLoop, x: Tensor) -> None:
    bound, found = above(net, x)
    assert (found <= bound * (1 + 1e-9)).all(), f"above the site {found.tolist()} > {bound.tolist()}"
    report = cbl.contraction(net, x, steps=1)
    assert report.certified is not None, report.reason
    with opened(net, Call((x,))) as space:
        found = largest_norm(space.undamped, space.start.detach())
    assert (found <= report.certified * (1 + 1e-9)).all(), f"{found.tolist()} > {report.certified.tolist()}"


class Body(nn.Module):
    """A site, then a function of its module and of h."""

    def __init__(self, site: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.site = site
        self.function = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.site(x))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
    "wide conv": lambda: nn.Conv2d(4, 4, (2, 3), padding="same", dilation=2),
    "strided": lambda: nn.Conv2d(4, 4, 2, stride=2, padding=1),
    "grouped": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=2),
    "circular": lambda: nn.Conv2d(4, 4, 3, padding=2, padding_mode="circular"),
    "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1),
    "batch norm": lambda: nn.BatchNorm2d(4),
    "group norm": lambda: nn.GroupNorm(2, 4),
    "max pool": lambda: nn.MaxPool2d(3, stride=1, padding=1, ceil_mode=True),
    "avg pool": lambda: nn.AvgPool2d(2, stride=1, padding=1, count_include_pad=False),
    "divisor": lambda: nn.AvgPool2d(3, stride=1, padding=1, divisor_override=2),
    "adaptive": lambda: nn.AdaptiveAvgPool2d((3, 7)),
    "relu": lambda: nn.ReLU(inplace=True),
    "tanh": nn.Tanh,
    "elu": lambda: nn.ELU(2.5),
    "gelu": nn.GELU,
    "softmax": lambda: nn.Softmax(1),
    "dropout": lambda: nn.Dropout(0.4),
}
FUNCTIONS: dict[str, Function] = {
    "twice": lambda h: h + h,
    "residual": lambda h: h + torch.tanh(h),
    "squared": lambda h: torch.sigmoid(h) * torch.tanh(h),
    "centred": lambda h: h - h.mean((2, 3), keepdim=True),
    "joined": lambda h: torch.cat([h[:, 1:3], h[:, 1:3]], 1),
    "stacked": lambda h: torch.stack([h, h, -h], 1).sum(1),
    "parted": lambda h: torch.cat([h.chunk(2, 1)[1], h.chunk(2, 1)[0]], 1),
    "shuffled": lambda h: h.view(h.shape[0], 2, 2, h.shape[2], h.shape[3]).transpose(1, 2).flatten(1, 2),
    "squeezed": lambda h: torch.tanh(h) * h.mean((2, 3), keepdim=True).sigmoid(),
    "scaled": lambda h: 3.0 * h / h.shape[1] - 1,
    "spread": lambda h: h + h.amax(1, keepdim=True),
    "written": lambda h: h.clone().mul_(2.0).add_(1.0),
    "elu": lambda h: F.elu(h, 3.0),
    "hardtanh": lambda h: F.hardtanh(h, -3.0, 3.0) * F.hardtanh(h, -3.0, 3.0),
    "turned": lambda h: h.permute(0, 1, 3, 2),
}


class Chain(nn.Module):
    """A site, some layers and functions, and a head."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.site = nn.Conv2d(3, 4, 1)
        self.names = names
        self.layers = nn.ModuleDict({str(i): LAYERS[name]() for i, name in enumerate(names) if name in LAYERS})
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.site(x)
        for i, name in enumerate(self.names):
            h = self.layers[str(i)](h) if name in LAYERS else FUNCTIONS[name.removeprefix("f:")](h)
        return self.head(self.pool(h).flatten(1))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(
    st.lists(st.sampled_from([*LAYERS, *(f"f:{name}" for name in FUNCTIONS)]), min_size=1, max_size=4),
    st.sampled_from(["additive", "concat", "film", "gate"]),
    st.integers(0, 1000),
)
def test_random_networks(names: list[str], adapter: str, seed: int) -> None:
    torch.manual_seed(seed)
    backbone = Chain(names).double().eval()
    for name, value in backbone.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.1 + torch.rand_like(value))
    x = torch.randn(2, 3, 5, 4).double()
    check(awaken(cbl.ContextLoop(backbone, "site", x, adapter, context=cbl.Context(dim=6), allow_dead=True)), x)


def amplifier() -> nn.Linear:
    layer = nn.Linear(6, 6)
    nn.init.eye_(layer.weight).data.mul_(20.0)
    return layer


def written_over(m: nn.Module, h: Tensor) -> Tensor:
    a = m.lin(h)
    a.mul_(50.0)
    return m.head(a)


def written_twice(m: nn.Module, h: Tensor) -> Tensor:
    a = m.lin(h)
    a.mul_(2.0)
    a += 3 * h
    return m.head(a)


def lin() -> nn.Module:
    return nn.Linear(6, 6)


def head(features: int = 6) -> nn.Module:
    return nn.Linear(features, 3)


DECEIVERS: dict[str, Callable[[], nn.Module]] = {
    "one value twice in a concatenation": lambda: Body(
        nn.Linear(4, 6), lambda m, h: m.head(torch.cat([h, h], 1)), head=head(12)
    ),
    "a submodule with a function's name": lambda: Body(
        nn.Linear(4, 6), lambda m, h: m.head(m.split(h)), split=amplifier(), head=head()
    ),
    "a value written over": lambda: Body(nn.Linear(4, 6), written_over, lin=lin(), head=head()),
    "a value written over twice": lambda: Body(nn.Linear(4, 6), written_twice, lin=lin(), head=head()),
    "a steep elu": lambda: Body(nn.Linear(4, 6), lambda m, h: m.head(F.elu(h, 30.0)), head=head()),
    "numbers of the shape": lambda: Body(nn.Linear(4, 6), lambda m, h: m.head(h * h.shape[1] + h.size(1)), head=head()),
    "padding that winds around": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1, padding=2, padding_mode="circular")
    ),
    "a divisor": lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1, 1, divisor_override=1)),
}  # fmt: skip


@pytest.mark.parametrize("kind", DECEIVERS)
def test_what_a_rule_could_overlook(kind: str) -> None:
    torch.manual_seed(0)
    backbone = DECEIVERS[kind]().double()
    x = torch.randn(3, 4).double() if isinstance(backbone, Body) else torch.randn(3, 3, 3, 4).double()
    name = "site" if isinstance(backbone, Body) else "0"
    context = cbl.Context(dim=6, per="sample")
    check(awaken(cbl.ContextLoop(backbone, name, x, "additive", context=context)), x)


def view_written(m: nn.Module, h: Tensor) -> Tensor:
    a = m.lin(h)
    a[:, :3].mul_(50.0)
    return m.head(a)


def louder(module: nn.Module) -> nn.Module:
    module.forward = types.MethodType(lambda self, x: 50 * F.linear(x, self.weight), module)  # type: ignore[method-assign]
    return module


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "mean of the batch": (lambda m, h: m.head(h - h.mean(0, keepdim=True)), "mixes the samples of a batch"),
    "softmax of the batch": (lambda m, h: m.head(h.softmax(0)), "mixes the samples of a batch"),
    "a part written over": (view_written, "'lin' is used again after a part of it was written over"),
    "alpha": (lambda m, h: m.head(torch.add(h, m.lin(h), alpha=9)), r"add\(\) with the arguments it is given"),
    "alpha in place": (lambda m, h: m.head(torch.add(h, 9, m.lin(h))), r"add\(\) with the arguments it is given"),
    "its own forward": (lambda m, h: m.head(m.own(h)), "no bound is known for Linear"),
    "a jump": (lambda m, h: m.head(F.softplus(h, 1.0, 0.0)), "softplus jumps at its threshold of 0"),
    "no batch axis": (lambda m, h: m.head(m.pool(h)), "MaxPool1d is given 2 axes and takes its samples for channels"),
    "division": (lambda m, h: m.head(h / (1 + h.abs())), "divides by a value that may be zero"),
    "a power": (lambda m, h: m.head(h**2), r"no bound is known for pow\(\)"),
    "a comparison": (lambda m, h: m.head(h * (h > 0)), "'gt' returns other things than one tensor of numbers"),
    "no deviation": (lambda m, h: m.head(m.norm(h)), "LayerNorm with eps = 0 divides by a deviation"),
    "indices": (lambda m, h: m.head(h[:, [0, 0, 1, 1, 2, 2]]), "an index that may repeat them"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_rule_is_refused(kind: str) -> None:
    torch.manual_seed(0)
    forward, reason = REFUSED[kind]
    parts = {"lin": lin(), "head": head(), "own": louder(lin()), "pool": nn.MaxPool1d(3, 1, 1)}
    backbone = Body(nn.Linear(4, 6), forward, **parts, norm=nn.LayerNorm(6, eps=0.0)).double()
    x = torch.randn(3, 4).double()
    net = awaken(cbl.ContextLoop(backbone, "site", x, "additive", allow_dead=True)).eval()
    with pytest.raises(NoBoundError, match=reason):
        Certifier(net, Call((x,)), at_call=True).bound()


def test_states_outside_the_simplex_count() -> None:
    """Where z is the state it may be any vector, so that a second film has no bound."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x = torch.randn(3, 4).double()
    for dim, known in ((8, True), (3, False)):
        context = cbl.Context(dim=dim, source="probs")
        net = awaken(cbl.ContextLoop(backbone, ["1", "3"], x, context=context))
        report = cbl.contraction(net, x, steps=1)
        assert (report.certified is not None) is known
        if report.certified is None:
            assert "nothing bounds z" in report.reason


class Averaging(nn.Module):
    """Its mask stands in the second place."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.head = nn.Linear(5, 8, bias=False), nn.Linear(8, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        h = self.site(x)
        return self.head(h + 0.1 * h.mean(1, keepdim=True))


def test_a_mask_counts_by_position_as_by_name() -> None:
    """One real position of 16: the mean over them is that one, not a 16th of it."""
    mask = torch.ones(2, 16).double()
    mask[:, 1:] = 0
    x = torch.randn(2, 16, 5).double() * mask[..., None]
    bounds = []
    for example in ((x, mask), {"x": x, "attention_mask": mask}):
        torch.manual_seed(0)
        context = cbl.Context(dim=2, per="sample")
        net = awaken(cbl.ContextLoop(Averaging().double(), "site", example, context=context)).eval()
        call = Call.from_example(example)
        bounds.append(Certifier(net, call, at_call=True).bound())
        with opened(net, call) as space:
            assert (largest_norm(space.undamped, space.start.detach()) <= bounds[-1]).all()
    torch.testing.assert_close(bounds[0], bounds[1])


def test_hooks_and_maps_of_their_own_are_refused() -> None:
    class Loud(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 50 * super().forward(x)

    backbone, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(3, 4)
    context = cbl.Context(dim=5, map=lambda features, dim: Loud(nn.Linear(features, dim)))
    net = cbl.ContextLoop(backbone, "0", x, "additive", context=context)
    assert "no bound is known for Loud in the map of a context" in cbl.contraction(net, x, steps=1).reason
    net = cbl.ContextLoop(backbone, "0", x, "additive")
    net.adapters["0"].register_forward_hook(lambda module, inputs, output: 100 * output)
    assert "has hooks, or a forward of its own" in cbl.contraction(net, x, steps=1).reason
