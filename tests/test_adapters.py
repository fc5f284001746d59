"""The adapters against their equations, on sites and contexts of every shape."""

from __future__ import annotations

import math
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from adapter_cases import (
    CASES,
    CHANGING,
    NAMES,
    B,
    C,
    D,
    answer,
    awake,
    by_hand,
    inputs,
    make,
    make_site,
    placed,
    scaled,
)
from torchcbl.adapters import Adapter, attending


@pytest.mark.parametrize(("kind", "size"), CASES)
@pytest.mark.parametrize("name", CHANGING)
def test_equation(name: str, kind: str, size: tuple[int, ...]) -> None:
    site = make_site(kind)
    psi, (h, z) = awake(name, site), inputs(kind, size)
    refined = psi(h, z)
    last = h.movedim(site.channel_dim, -1)
    expected = by_hand(psi, last.reshape(B, -1, C), z, lambda values: placed(values, h, site.channel_dim))
    expected = expected.reshape(last.shape).movedim(-1, site.channel_dim)
    torch.testing.assert_close(refined, expected, rtol=0, atol=1e-12)
    assert (refined - h).abs().max() > 0.1


def test_a_recurrent_update_at_full_scale_is_torchs_gru_cell() -> None:
    psi = awake("recurrent", make_site("vector"))
    cell = nn.GRUCell(D, C).double()
    with torch.no_grad():
        psi.scale.fill_(1.0)
        cell.bias_hh.zero_()
        cell.weight_hh.copy_(torch.cat([psi.gates.weight, psi.candidate.weight]))
        cell.weight_ih.copy_(psi.linear.weight)
        cell.bias_ih.copy_(psi.linear.bias)
        cell.weight_hh[C : 2 * C] *= -1  # torch's update gate keeps the old state, so 1 - sigmoid(x) = sigmoid(-x)
        cell.weight_ih[C : 2 * C] *= -1
        cell.bias_ih[C : 2 * C] *= -1
        # and its reset gate comes after the matrix: open it here, so that both agree
        psi.gates.weight[:C], psi.linear.weight[:C], psi.linear.bias[:C] = 0.0, 0.0, 50.0
        cell.weight_hh[:C], cell.weight_ih[:C], cell.bias_ih[:C] = 0.0, 0.0, 50.0
    h, z = inputs("vector", ())
    torch.testing.assert_close(psi(h, z), cell(z, h), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "kind", "size"),
    [(n, *case) for n in CHANGING for case in (("vector", ()), ("map", (2, 3)), ("series", (7,)))]
    + [("token", "tokens", ()), ("token", "tokens", (7,))],
)
def test_gradients(name: str, kind: str, size: tuple[int, ...]) -> None:
    psi, (h, z) = awake(name, make_site(kind)), inputs(kind, size)
    parameters = dict(psi.named_parameters())

    def run(h: Tensor, z: Tensor, *values: Tensor) -> Tensor:
        with attending([psi]):
            refined = torch.func.functional_call(psi, dict(zip(parameters, values, strict=True)), (h, z))
            return scaled(refined) if name == "token" else refined

    given = [x.detach().requires_grad_() for x in (h, z, *parameters.values())]
    assert torch.autograd.gradcheck(run, given, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("kind", "size"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_identity_start(name: str, kind: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    h, z = inputs(kind, size, dtype)
    psi = make(name, make_site(kind), dtype)
    axis = psi.site.channel_dim
    layouts = {
        "plain": h,
        "channels last": h.movedim(axis, -1).contiguous().movedim(-1, axis),
        "channels first": h.movedim(axis, 1).contiguous().movedim(1, axis),
        "a slice": torch.stack([h, h], dim=1)[:, 0],
    }
    for layout, laid in layouts.items():
        refined = psi(laid, z)
        assert torch.equal(refined, laid), layout
        assert refined.dtype == dtype
        # roundings of the layers that follow depend on the memory format
        order = sorted(range(laid.ndim), key=lambda axis: -laid.stride(axis))
        assert sorted(range(laid.ndim), key=lambda axis: -refined.stride(axis)) == order, layout


COUNTS = {  # for D = 5, C = 6, r = 8, M = 4, E = 32
    "additive": ("r (D + C) + C", 8 * (5 + 6) + 6),
    "attention": ("M D (D + 1) + E (2 C + 2 D + 3) + C", 4 * 5 * (5 + 1) + 32 * (2 * 6 + 2 * 5 + 3) + 6),
    "concat": ("C (C + D + 1)", 6 * (6 + 5 + 1)),
    "film": ("2 C (D + 1)", 2 * 6 * (5 + 1)),
    "gate": ("C (D + 1)", 6 * (5 + 1)),
    "recurrent": ("3 C (C + D + 1) + C", 3 * 6 * (6 + 5 + 1) + 6),
    "token": ("2 M C (D + 1) + C", 2 * 4 * 6 * (5 + 1) + 6),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_cost_in_the_docstring_is_what_there_is(name: str) -> None:
    formula, count = COUNTS[name]
    adapter = make(name, make_site("tokens"))
    assert sum(parameter.numel() for parameter in adapter.parameters()) == count
    assert f"Cost: {formula} parameters" in " ".join(str(type(adapter).__doc__).split())


@pytest.mark.parametrize("name", CHANGING)
def test_without_an_identity_start(name: str) -> None:
    h, z = inputs("map", ())
    assert not torch.allclose(make(name, make_site("map"), identity=False)(h, z), h, atol=1e-3)


def test_a_gate_of_scale_one_starts_at_half() -> None:
    h, z = inputs("map", ())
    assert torch.equal(make("gate", make_site("map"), scale=1.0)(h, z), h / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "size"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_autocast(name: str, kind: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    h, z = inputs(kind, size, torch.float32)
    h = h.to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        refined = make(name, make_site(kind), torch.float32)(h, z)
    assert refined.dtype == dtype
    tolerance = 2**-8 if name == "concat" and dtype == torch.float32 else 0.0  # bfloat16 has 8 bits
    torch.testing.assert_close(refined, h, rtol=tolerance, atol=0)
    psi = awake(name, make_site(kind), dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        moved = psi(h, z)
    assert moved.dtype == dtype
    exact = psi.double()(h.double(), z.double())
    assert (moved - exact).norm() < 0.02 * exact.norm()


def test_a_vector_taken_out_of_a_sequence() -> None:
    h, z = torch.randn(B, 7, C, dtype=torch.float64)[:, 0], torch.randn(B, D, dtype=torch.float64)
    strided = torch.randn(B, C, 2, dtype=torch.float64)[..., 0]
    for name in CHANGING:
        psi = awake(name, make_site("vector"))
        for given in (h, strided):
            assert torch.equal(psi(given, z), psi(given.contiguous(), z)), name


@pytest.mark.parametrize(("kind", "size"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_batches_of_none_and_of_one(name: str, kind: str, size: tuple[int, ...]) -> None:
    psi, (h, z) = awake(name, make_site(kind)), inputs(kind, size)
    with attending([psi]):
        assert psi(h[:0], z[:0]).shape == (0, *h.shape[1:])
        if kind == "tokens":
            assert scaled(h[:0]).shape == (0, *h.shape[1:])
    torch.testing.assert_close(psi(h[1:2], z[1:2]), psi(h, z)[1:2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_one_position(name: str) -> None:
    psi = awake(name, make_site("tokens", causal=True))
    h, z = torch.randn(B, 1, C, dtype=torch.float64), torch.randn(B, 1, D, dtype=torch.float64)
    assert torch.allclose(answer(psi, h, z), answer(psi, h, z[:, 0]), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("gate", {"scale": 0.0}, "Gate's scale must be positive, got 0.0: expected a finite number"),
        ("gate", {"scale": -1.0}, "Gate's scale must be positive, got -1.0"),
        ("gate", {"scale": math.nan}, "Gate's scale must be positive, got nan"),
        ("gate", {"scale": math.inf}, "Gate's scale must be positive, got inf"),
        ("additive", {"rank": 0}, "Additive's rank must be a whole number, at least 1, got 0"),
        ("additive", {"rank": True}, "Additive's rank must be a whole number, at least 1, got True"),
        ("attention", {"tokens": 0}, "Attention's tokens must be a whole number, at least 1, got 0"),
        ("attention", {"width": 2.0}, "Attention's width must be a whole number, at least 1, got 2.0"),
        ("attention", {"heads": -1}, "Attention's heads must be a whole number, at least 1, got -1"),
        ("attention", {"width": 10, "heads": 4}, "width must be a multiple of heads, got width=10 and heads=4"),
        ("token", {"tokens": 0}, "Token's tokens must be a whole number, at least 1, got 0"),
    ],
)
def test_bad_sizes(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(name, make_site("tokens"), **options)


@pytest.mark.parametrize(("kind", "size"), [("tokens", (5,)), ("tokens", (7, 1)), ("map", (24,)), ("vector", (7,))])
@pytest.mark.parametrize("name", ["additive", "concat", "film", "gate", "recurrent"])
def test_positions_that_do_not_match(name: str, kind: str, size: tuple[int, ...]) -> None:
    positions = re.escape(f"the context has positions {size}, but the hidden states of site 'block' have shape")
    with pytest.raises(ValueError, match=rf"{positions}.*Context\(per='sample'\)"):
        make(name, make_site(kind))(*inputs(kind, size))


@pytest.mark.parametrize("name", ["attention", "token"])
def test_other_positions_in_a_causal_network(name: str) -> None:
    with pytest.raises(ValueError, match="context has 5 positions, but site 'block' has 7.*choose a site with"):
        answer(make(name, make_site("tokens", causal=True)), *inputs("tokens", (5,)))


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((B, 2, 7, 4), "tokens for 3 samples of width 6, but an attention layer.*batch of 3 and width 2 x 4"),
        ((2 * B, 2, 7, 3), "batch of 6 and width 2 x 3.*not split into windows, or adapter='attention'"),
        ((B, 1, 2, 7, 3), "token adapter at site 'block' meets attention of queries .*adapter='attention'"),
    ],
)
def test_attention_that_tokens_cannot_join(query: tuple[int, ...], message: str) -> None:
    psi, (h, z) = make("token", make_site("tokens")), inputs("tokens", ())
    q = torch.randn(query, dtype=torch.float64)
    with attending([psi]):
        psi(h, z)
        with pytest.raises(ValueError, match=message):
            F.scaled_dot_product_attention(q, q, q)


def test_attention_whose_values_are_wider_than_its_queries() -> None:
    psi, (h, z) = make("token", make_site("tokens")), inputs("tokens", ())
    with attending([psi]):
        psi(h, z)
        with pytest.raises(ValueError, match=r"queries \(3, 7, 6\) that returns \(3, 7, 12\)"):
            F.scaled_dot_product_attention(h, h, torch.cat([h, h], -1))


def test_an_adapter_must_have_a_forward() -> None:
    with pytest.raises(TypeError, match="abstract"):
        Adapter(make_site("map"), D)  # type: ignore[abstract]


class Shift(Adapter):
    """h' = h + tanh(W z): not the identity."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__(site, context_dim)
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + self.per_channel(torch.tanh(self.linear(z)), h)


@pytest.mark.parametrize("stride", [1, 2])
def test_an_adapter_of_ones_own_on_grids(stride: int) -> None:
    low, head = nn.Conv2d(3, C, 3, stride=stride, padding=1), nn.Conv2d(C, 2, 1)
    backbone = nn.Sequential(low, nn.ReLU(), nn.Upsample(scale_factor=stride), head).double()
    x = torch.randn(B, 3, 8, 12, dtype=torch.float64)
    net = cbl.ContextLoop(backbone, "1", x, adapter=Shift, context=cbl.Context(dim=D), steps=1)
    y, (psi,) = backbone(x), net.adapters.values()
    z = y.movedim(1, -1) @ net.context.map.weight.T + net.context.map.bias
    h = torch.relu(low(x))
    shift = placed(torch.tanh(psi.linear(z)), h, axis=1).transpose(1, 2).view_as(h)
    torch.testing.assert_close(net(x), backbone[2:](h + shift), rtol=0, atol=1e-12)
    assert net.audit().dead == ()
