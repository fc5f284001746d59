"""What attention and token let positions see: masks, causality, and tokens among the keys of a backbone."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from adapter_cases import NAMES, B, C, D, answer, at_random, attend_by_hand, awake, inputs, make_site, scaled
from torchcbl.adapters import Adapter, Attention, Token, attending

MASKS = {
    "right": torch.tensor([[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0], [1] * 7]),
    "left": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 1, 1, 1], [1] * 7]),
    "one sample is all padding": torch.tensor([[1] * 7, [0] * 7, [1] * 7]),
}


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padding", MASKS)
@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing_real(name: str, padding: str, causal: bool) -> None:
    psi, (h, z) = awake(name, make_site("tokens", causal)), inputs("tokens", (7,))
    mask = MASKS[padding]
    real = mask.bool()
    before = answer(psi, h, z, mask, causal)
    assert before.isfinite().all()
    other = [torch.where(real[..., None], x, 30 * torch.randn_like(x)) for x in (h, z)]
    torch.testing.assert_close(answer(psi, *other, mask, causal)[real], before[real], rtol=0, atol=1e-12)
    assert not torch.allclose(answer(psi, h, z + real[..., None], mask, causal)[real], before[real])
    longer = [F.pad(x, (0, 0, 0, 3), value=9.0) for x in (h, z)]
    more = answer(psi, *longer, F.pad(mask, (0, 3)), causal)[:, :7]
    torch.testing.assert_close(more[real], before[real], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["attention", "token"])
def test_a_mask_of_booleans_is_one_of_numbers(name: str) -> None:
    psi, (h, z) = awake(name, make_site("tokens")), inputs("tokens", (7,))
    mask = MASKS["right"]
    assert torch.equal(answer(psi, h, z, mask, False), answer(psi, h, z, mask.bool(), False))
    assert not torch.allclose(answer(psi, h, z, mask, False), answer(psi, h, z, None, False))


@pytest.mark.parametrize("padding", [None, *MASKS])
@pytest.mark.parametrize("name", NAMES)
def test_later_context_moves_nothing_earlier(name: str, padding: str | None) -> None:
    psi, (h, z) = awake(name, make_site("tokens", causal=True)), inputs("tokens", (7,))
    mask = None if padding is None else MASKS[padding]
    before = answer(psi, h, z, mask)
    assert before.isfinite().all()
    for begin in range(1, 7):
        later = torch.cat([z[:, :begin], torch.randn_like(z[:, begin:])], 1)
        after = answer(psi, h, later, mask)
        torch.testing.assert_close(after[:, :begin], before[:, :begin], rtol=0, atol=1e-12)
        assert (after[2, begin] - before[2, begin]).abs().max() > 1e-6  # whose mask admits all


@pytest.mark.parametrize("causal", [False, True])
def test_what_sees_nothing_but_padding_averages_it(causal: bool) -> None:
    psi, (h, z) = awake("attention", make_site("tokens", causal)), inputs("tokens", (7,))
    assert isinstance(psi, Attention)
    values = psi.value(psi.expand(z).view(B, 7, psi.tokens, D)).mean(2)
    seen = torch.ones(7, 7, dtype=torch.float64).tril() if causal else torch.ones(7, 7, dtype=torch.float64)
    expected = h + psi.out(seen / seen.sum(-1, keepdim=True) @ values)
    torch.testing.assert_close(psi(h, z, torch.zeros(B, 7)), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", ["attention", "token"])
def test_rows_of_padding_stay_finite_where_scores_are_large(name: str, dtype: torch.dtype) -> None:
    psi, (h, z) = awake(name, make_site("tokens", causal=True)).to(dtype), inputs("tokens", (7,), dtype)
    h = (20 * h).requires_grad_()
    moved = answer(psi, h, 20 * z, MASKS["one sample is all padding"])
    assert moved.isfinite().all()
    assert torch.autograd.grad(moved.float().sum(), h)[0].isfinite().all()


def tokens_of(psi: Adapter, z: Tensor) -> tuple[Tensor, Tensor]:
    assert isinstance(psi, Token)
    keys, values = (z.reshape(len(z), -1, D) @ m.weight.T + m.bias for m in (psi.key, psi.value))
    return keys.reshape(len(z), -1, C), values.reshape(len(z), -1, C)


@pytest.mark.parametrize("size", [(), (7,), (2, 4)])
def test_tokens_in_scaled_dot_product_attention(size: tuple[int, ...]) -> None:
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", size)
    expected = attend_by_hand(h, h, h, 2) + psi.gate * attend_by_hand(h, *tokens_of(psi, z), 2)
    single = attend_by_hand(h, h, h, 1) + psi.gate * attend_by_hand(h, *tokens_of(psi, z), 1)
    with attending([psi]):
        psi(h, z)
        torch.testing.assert_close(scaled(h), expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(F.scaled_dot_product_attention(h, h, h), single, rtol=0, atol=1e-12)
    assert (expected - scaled(h)).abs().max() > 0.1


def test_tokens_in_grouped_query_attention_with_a_scale() -> None:
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", ())
    q, few = h.unflatten(-1, (2, 3)).transpose(1, 2), torch.randn(B, 1, 9, 3, dtype=torch.float64)
    k, v = (x.reshape(B, -1, 2, 3).transpose(1, 2) for x in tokens_of(psi, z))
    found = (q @ k.transpose(2, 3) * 0.3).softmax(-1) @ v
    plain = F.scaled_dot_product_attention(q, few, few, scale=0.3, enable_gqa=True)
    with attending([psi]):
        psi(h, z)
        joined = F.scaled_dot_product_attention(q, few, few, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(joined, plain + psi.gate.view(2, 1, 3) * found, rtol=0, atol=1e-12)


def multi_head_by_hand(attention: nn.MultiheadAttention, psi: Adapter, h: Tensor, z: Tensor) -> Tensor:
    q, k, v = (h @ attention.in_proj_weight.T + attention.in_proj_bias).split(C, -1)
    found = attend_by_hand(q, k, v, 2) + psi.gate * attend_by_hand(q, *tokens_of(psi, z), 2)
    return found @ attention.out_proj.weight.T + attention.out_proj.bias


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_tokens_in_multi_head_attention(batch_first: bool, gradients: bool) -> None:
    attention = at_random(nn.MultiheadAttention(C, 2, batch_first=batch_first)).eval()
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", (7,))
    expected = multi_head_by_hand(attention, psi, h, z)
    given = h if batch_first else h.transpose(0, 1)
    with attending([psi]), torch.set_grad_enabled(gradients):
        psi(h, z)
        found, _ = attention(given, given, given)
    torch.testing.assert_close(found if batch_first else found.transpose(0, 1), expected, rtol=0, atol=1e-12)


def test_tokens_in_multi_head_attention_with_keys_of_another_size() -> None:
    attention = at_random(nn.MultiheadAttention(C, 2, kdim=4, vdim=4, batch_first=True))
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", ())
    other = torch.randn(B, 3, 4, dtype=torch.float64)
    q = h @ attention.q_proj_weight.T + attention.in_proj_bias[:C]
    extra = psi.gate * attend_by_hand(q, *tokens_of(psi, z), 2) @ attention.out_proj.weight.T
    plain = attention(h, other, other)[0]
    with attending([psi]):
        psi(h, z)
        torch.testing.assert_close(attention(h, other, other)[0], plain + extra, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_tokens_in_an_encoder_layer(norm_first: bool, gradients: bool) -> None:
    layer = at_random(nn.TransformerEncoderLayer(C, 2, 8, norm_first=norm_first, batch_first=True)).eval()
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", ())

    def think(x: Tensor) -> Tensor:
        return layer.linear2(torch.relu(layer.linear1(x)))

    if norm_first:
        middle = h + multi_head_by_hand(layer.self_attn, psi, layer.norm1(h), z)
        expected = middle + think(layer.norm2(middle))
    else:
        middle = layer.norm1(h + multi_head_by_hand(layer.self_attn, psi, h, z))
        expected = layer.norm2(middle + think(middle))
    with attending([psi]), torch.set_grad_enabled(gradients):
        psi(h, z)
        torch.testing.assert_close(layer(h), expected, rtol=0, atol=1e-12)


class Transformer(nn.Module):
    """Three attention layers in a row, written out, with a head per sample or per position."""

    def __init__(self, positions: bool = False, causal: bool = False) -> None:
        super().__init__()
        self.embed = nn.Linear(4, C)
        self.layers = nn.ModuleList(Layer(causal) for _ in range(3))
        self.norm = nn.LayerNorm(C)
        self.head = nn.Linear(C, 2)
        self.positions = positions

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return self.head(self.norm(h if self.positions else h.mean(1)))


class Layer(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)
        self.causal = causal

    def forward(self, h: Tensor) -> Tensor:
        q = torch.unflatten(self.linear(h), -1, (2, 3)).transpose(1, 2)
        found = F.scaled_dot_product_attention(q, q, q, is_causal=self.causal)
        return h + found.transpose(1, 2).flatten(2)


def transformer_loop(
    adapter: object, sites: Sequence[str], cut: str = "traced", **kind: bool
) -> tuple[cbl.ContextLoop, Tensor]:
    x, backbone = torch.randn(B, 7, 4, dtype=torch.float64), Transformer(**kind).double()
    net = cbl.ContextLoop(backbone, sites, x, adapter=adapter, context=cbl.Context(dim=D), cut=cut)  # type: ignore
    with torch.no_grad():
        for parameter in net.adapter_parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return net, x


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("next_site", [None, "layers.1"])
def test_tokens_leave_at_the_next_site(next_site: str | None, cut: str) -> None:
    adapters = {"layers.0": "token"} if next_site is None else {"layers.0": "token", next_site: "film"}
    net, x = transformer_loop(adapters, list(adapters), cut)
    backbone, psi = net.backbone, next(iter(net.adapters.values()))
    first = backbone.layers[0](backbone.embed(x))
    outputs = [backbone(x)]
    for _ in range(2):
        z, h = net.context(outputs[-1]), first
        for index in (1, 2):
            q = backbone.layers[index].linear(h)
            hears = index == 1 or next_site is None
            h = h + attend_by_hand(q, q, q, 2) + hears * psi.gate * attend_by_hand(q, *tokens_of(psi, z), 2)
            if index == 1 and next_site is not None:
                h = list(net.adapters.values())[1](h, z)
        outputs.append(backbone.head(backbone.norm(h.mean(1))))
    for found, expected in zip(net.refine(x).outputs, outputs, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert torch.equal(backbone(x), outputs[0])


@pytest.mark.parametrize("name", ["attention", "token"])
def test_a_causal_loop_stays_causal(name: str) -> None:
    net, x = transformer_loop(name, ["layers.0", "layers.1"], positions=True, causal=True)
    assert all(site.causal for site in net.sites)
    before = net(x)
    other = torch.cat([x[:, :4], torch.randn_like(x[:, 4:])], 1)
    torch.testing.assert_close(net(other)[:, :4], before[:, :4], rtol=0, atol=1e-12)
    assert not torch.allclose(net(other)[:, 4:], before[:, 4:])


@pytest.mark.parametrize("name", NAMES)
def test_the_identity_start_is_exact_without_torchs_fused_layers(name: str) -> None:
    layers = [nn.TransformerEncoderLayer(C, 2, 8, dropout=0.0, batch_first=True) for _ in range(2)]
    x, backbone = torch.randn(B, 7, C), nn.Sequential(*layers, nn.Linear(C, 4)).eval()
    net = cbl.ContextLoop(backbone, "0", x, adapter=name)
    for y in net.refine(x).outputs:
        assert torch.equal(y, backbone(x)), "gradients keep the fused kernel away"
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            assert torch.equal(net(x), backbone(x))
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_tokens_are_dead_after_the_last_attention_layer() -> None:
    for site in ("embed", "layers.0", "layers.1"):
        net, _ = transformer_loop("token", [site])
        assert net.audit().dead == ()
    with pytest.raises(ValueError, match="adapter at 'layers.2' cannot move the output.*no attention layer that torch"):
        transformer_loop("token", ["layers.2"])
    with pytest.raises(ValueError, match="adapter at 'norm' cannot move.*Choose an earlier site.*adapter='attention'"):
        transformer_loop({"layers.0": "film", "norm": "token"}, ["layers.0", "norm"])


def test_threads_do_not_see_each_others_tokens() -> None:
    psi, (h, _) = awake("token", make_site("tokens")), inputs("tokens", ())
    contexts = torch.randn(2, B, D, dtype=torch.float64)
    expected = [answer(psi, h, z, causal=False) for z in contexts]
    plain, ready, all_joined = scaled(h), threading.Barrier(2, timeout=10), threading.Barrier(3, timeout=10)
    found: list[Tensor | None] = [None, None]

    def work(index: int) -> None:
        with attending([psi]):
            ready.wait()
            psi(h, contexts[index])
            all_joined.wait()
            found[index] = scaled(h)
            all_joined.wait()

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    all_joined.wait()
    assert torch.equal(scaled(h), plain), "this thread joined nothing"
    all_joined.wait()
    for thread in threads:
        thread.join()
    assert not torch.allclose(expected[0], expected[1])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_a_loop_within_a_loop_gives_the_outer_one_its_tokens_back() -> None:
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", ())
    expected = answer(psi, h, z, causal=False)
    with attending([psi]):
        with attending([psi]):
            pass
        psi(h, z)
        torch.testing.assert_close(scaled(h), expected, rtol=0, atol=1e-12)


def test_nothing_stays_behind_after_an_exception() -> None:
    psi, (h, z) = awake("token", make_site("tokens")), inputs("tokens", ())
    plain = scaled(h)

    def fail() -> None:
        with attending([psi]):
            psi(h, z)
            assert not torch.allclose(scaled(h), plain)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert torch.equal(scaled(h), plain)
    psi(h, z)  # outside a loop nobody hears it
    assert torch.equal(scaled(h), plain)

    net, x = transformer_loop("token", ["layers.0"])
    before, alone = net(x), net.backbone(x)
    handle = net.backbone.layers[2].register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        net(x)
    handle.remove()
    assert torch.equal(scaled(h), plain)
    assert torch.equal(net.backbone(x), alone)
    assert torch.equal(net(x), before)
