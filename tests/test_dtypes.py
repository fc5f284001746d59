"""Networks of several dtypes: what is added computes in the dtype of its own weights, and h and y keep theirs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.adapters import ADAPTERS, Film
from torchcbl.backbone.calls import synthesise
from torchcbl.context import ContextMap
from torchcbl.dtypes import in_weights_dtype

LOW = torch.bfloat16
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))


class FloatLogits(nn.Module):
    """Low precision, but for the logits, as in many language models."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.to(self.first.weight.dtype))).float()


class FloatNorm(nn.Module):
    """A norm kept in float32, and it comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.first = nn.Linear(4, 8, dtype=LOW)
        self.last = nn.Linear(8, 3, dtype=LOW)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.norm(x).to(LOW)))


class FloatStates(nn.Module):
    """Hidden states kept in float32, in low precision before and after, as in T5."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(4, 8, dtype=LOW)
        self.first = nn.Linear(8, 8)
        self.last = nn.Linear(8, 3, dtype=LOW)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.before(x.to(LOW)).float()).to(LOW))


NETWORKS = {"logits": lambda: FloatLogits().to(LOW), "norm": FloatNorm, "states": FloatStates}
ON_VECTORS = sorted(ADAPTERS.keys() - {"token"})  # which needs attention to speak to


def moved(net: cbl.ContextLoop) -> cbl.ContextLoop:
    with torch.no_grad():
        for parameter in net.adapter_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())))
    return net


@pytest.mark.parametrize("adapter", ON_VECTORS)
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_every_adapter_goes_into_networks_of_several_dtypes(kind: str, adapter: str) -> None:
    backbone = NETWORKS[kind]()
    net = cbl.ContextLoop(backbone, "first", X, adapter=adapter)
    y = backbone(X)
    assert torch.equal(net(X), y)
    assert net(X).dtype == y.dtype
    assert net.audit().dead == ()
    refined = moved(net).refine(X)
    assert not torch.equal(refined.output, y)
    refined.output.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == p.dtype for p in net.adapter_parameters())


@pytest.mark.parametrize("options", [{"alpha": 0.5}, {"schedule": "literal"}, {"schedule": "synchronous"}])
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_states_that_are_carried_keep_their_dtype(kind: str, options: dict[str, object]) -> None:
    backbone = NETWORKS[kind]()
    net = cbl.ContextLoop(backbone, "first", X, **options)  # type: ignore[arg-type]
    assert torch.equal(net(X), backbone(X))


def test_no_weight_is_narrower_than_what_it_reads() -> None:
    for kind, adapter, context in (
        ("logits", LOW, torch.float32),
        ("norm", torch.float32, torch.float32),
        ("states", torch.float32, LOW),
    ):
        net = cbl.ContextLoop(NETWORKS[kind](), "first", X)
        assert {p.dtype for p in net.adapters.parameters()} == {adapter}, kind
        assert {p.dtype for p in net.context.parameters()} == {context}, kind


def test_autocast_where_a_loop_is_built_is_not_what_it_is_kept_in() -> None:
    with torch.autocast("cpu", LOW):
        net = cbl.ContextLoop(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3)), "0", X)
    assert {p.dtype for p in net.parameters()} == {torch.float32}


class Complex(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(torch.view_as_real(x).flatten(1)))


class LowEmbedding(nn.Module):
    """Its first parameter is narrower than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(7, 8, dtype=LOW), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, index: Tensor, x: Tensor) -> Tensor:
        return self.last(self.first(x) + self.embed(index).float())


@pytest.mark.parametrize(
    ("make", "example"),
    [(Complex, (torch.randn(5, 4, dtype=torch.complex64),)), (LowEmbedding, (torch.arange(5), X))],
)
def test_an_example_is_made_again_in_its_dtype(
    make: Callable[[], nn.Module], example: tuple[Tensor, ...], tmp_path: Path
) -> None:
    net = moved(cbl.ContextLoop(make(), "first", example))
    assert net.audit().dead == ()
    net.save(tmp_path)
    assert torch.equal(cbl.load(tmp_path, net.backbone)(*example), net(*example))


def test_an_example_follows_a_backbone_that_is_converted() -> None:
    for make, example in ((FloatLogits, X), (LowEmbedding, (torch.arange(5), X))):
        net = cbl.ContextLoop(make(), "first", example).to(torch.float64)
        assert synthesise(net.config.example, net.backbone).args[-1].dtype == torch.float64


@pytest.mark.parametrize("adapter", ON_VECTORS)
def test_a_loop_can_be_converted_afterwards(adapter: str) -> None:
    net = cbl.ContextLoop(FloatLogits(), "first", X, adapter=adapter).to(LOW)
    assert torch.equal(net(X), net.backbone(X))
    net.adapters.float()
    assert torch.equal(net(X), net.backbone(X))


def test_the_numbers_are_those_of_the_weights_dtype() -> None:
    net = moved(cbl.ContextLoop(FloatNorm(), "first", X, steps=1))
    backbone, (film,) = net.backbone, net.adapters.values()
    assert isinstance(backbone, FloatNorm)
    h, z = backbone.first(backbone.norm(X).to(LOW)), net.context.map(backbone(X).float())
    assert torch.equal(net(X), backbone.last(film(h.float(), z).to(LOW)))


class Watched(Film):
    """Notes the dtypes that it is given."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        self.seen = (h.dtype, z.dtype)
        return super().forward(h, z)


def test_autocast_chooses_dtypes_as_ever() -> None:
    net = cbl.ContextLoop(FloatNorm(), "first", X, adapter=Watched)
    (watched,) = net.adapters.values()
    net(X)
    assert watched.seen == (torch.float32, torch.float32)
    with torch.autocast("cpu", LOW):
        net(X)
    assert watched.seen == (LOW, LOW)
    source = torch.zeros(2, 4, dtype=LOW)
    with torch.autocast("cpu", LOW):
        assert in_weights_dtype(nn.Linear(4, 4), source) is source


class Mixed(nn.Module):
    """An adapter of one's own that casts by itself."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(site.channels))
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return (h + self.scale * self.linear(z.to(self.linear.weight.dtype))).to(h.dtype)


def test_an_adapter_of_several_dtypes_is_left_to_itself() -> None:
    net = cbl.ContextLoop(FloatNorm(), "first", X, adapter=Mixed)
    (mixed,) = net.adapters.values()
    mixed.linear.to(LOW)
    assert torch.equal(net(X), net.backbone(X))


class Exponent(nn.Module):
    """Returns float32, as `exp` under autocast on a GPU does."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h * (self.linear(z).float() / 8).exp()


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_what_an_adapter_computes_in_another_dtype_is_h_s_again(alpha: float) -> None:
    net = cbl.ContextLoop(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)), "0", X, Exponent, alpha=alpha)
    with torch.autocast("cpu", LOW):
        low = net(X)
    assert low.dtype == LOW
    torch.testing.assert_close(low.float(), net(X), rtol=0.05, atol=0.05)
    assert not torch.equal(net(X), net.backbone(X))


def test_the_mean_over_real_positions_fits_into_float16() -> None:
    g = ContextMap(cbl.Context(dim=3), 4, -1, pool=True).half()
    source, mask = torch.full((2, 3000, 4), 100.0, dtype=torch.float16), torch.ones(2, 3000)
    mask[0, 1234:] = 0
    assert torch.equal(g(source, mask), g(source))


def test_a_map_of_ones_own_is_given_its_own_dtype() -> None:
    context = cbl.Context(dim=6, map=lambda features, dim: nn.Sequential(nn.Linear(features, dim), nn.Tanh()))
    net = cbl.ContextLoop(FloatLogits(), "first", X, context=context).to(LOW)
    assert torch.equal(net(X), net.backbone(X))


class Cuts(nn.Module):
    def __init__(self, site: cbl.Site, context_dim: int, mask: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, site.channels)
        self.wants_mask = mask

    def forward(self, h: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        return (h + self.linear(z).unsqueeze(1))[:, :1]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        return self.first(x)


@pytest.mark.parametrize("mask", [False, True])
def test_an_adapter_with_weights_is_still_blamed_by_name(mask: bool) -> None:
    example = {"x": torch.randn(2, 3, 4), "attention_mask": torch.ones(2, 3)}
    cuts, context = functools.partial(Cuts, mask=mask), cbl.Context(per="sample")
    with pytest.raises(ValueError, match=r"Cuts returned shape \(2, 1, 4\)"):
        cbl.ContextLoop(Reader(), "first", example, adapter=cuts, context=context)
