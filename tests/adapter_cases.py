"""Sites, contexts and equations by hand that the tests of the adapters share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.adapters import ADAPTERS, Adapter, Additive, Attention, Concat, Film, Gate, Recurrent, Token, attending

B, C, D = 3, 6, 5
Module = TypeVar("Module", bound=nn.Module)
NAMES = sorted(ADAPTERS)
CHANGING = [name for name in NAMES if name != "token"]  # those that change h where they stand
SHAPES = {
    "vector": ((B, C), 1),
    "map": ((B, C, 4, 6), 1),
    "tokens": ((B, 7, C), 2),
    "series": ((B, C, 7), 1),
    "last": ((B, 4, 6, C), 3),
    "volume": ((B, C, 2, 4, 2), 1),
}
Z_SIZES = {
    "vector": [()],
    "map": [(), (4, 6), (12, 18), (4, 18), (2, 3), (2, 18)],  # at a factor of 2 means and interpolations agree
    "tokens": [(), (7,)],
    "series": [(), (7,)],
    "last": [(), (4, 6), (12, 18), (2, 3)],
    "volume": [(), (2, 4, 2), (6, 12, 6), (1, 2, 1)],
}
CASES = [(kind, size) for kind, sizes in Z_SIZES.items() for size in sizes]


def make_site(kind: str, causal: bool = False) -> cbl.Site:
    shape, axis = SHAPES[kind]
    return cbl.Site("block", shape, axis, causal)


def make(name: str, site: cbl.Site, dtype: torch.dtype = torch.float64, **options: object) -> Adapter:
    adapter = ADAPTERS[name](site, D, **options)  # type: ignore[call-arg]
    assert isinstance(adapter, Adapter)
    return adapter.to(dtype)


def at_random(module: Module) -> Module:
    """The module in float64, or what it was made in, with every weight and bias at random."""
    module = module if isinstance(module, Adapter) else module.double()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
    return module


def awake(name: str, site: cbl.Site, **options: object) -> Adapter:
    adapter = make(name, site, **options)
    return at_random(adapter)


def inputs(kind: str, size: Sequence[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(SHAPES[kind][0], dtype=dtype), torch.randn(B, *size, D, dtype=dtype)


def weights_1d(old: int, new: int, average: bool) -> Tensor:
    """Averages of equal blocks, or linear interpolation between cell centres, as a matrix (new, old)."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        if average:
            matrix[row, row * old // new : (row + 1) * old // new] = new / old
        else:
            at = min(max((row + 0.5) * old / new - 0.5, 0.0), old - 1.0)
            low = min(int(at), old - 1)
            matrix[row, low] += 1 - (at - low)
            matrix[row, min(low + 1, old - 1)] += at - low
    return matrix


def placed(values: Tensor, h: Tensor, axis: int) -> Tensor:
    """Values (B, ..., F) at the positions of h, in order, as (B, P or 1, F)."""
    grid = [n for a, n in enumerate(h.shape) if a not in (0, axis)]
    sizes = list(values.shape[1:-1])
    average = len(sizes) > 0 and all(new <= old for new, old in zip(grid, sizes, strict=True))
    for a, (old, new) in enumerate(zip(sizes, grid, strict=True) if sizes else ()):
        values = torch.tensordot(values, weights_1d(old, new, average), ([a + 1], [1])).movedim(-1, a + 1)
    return values.reshape(len(h), -1, values.shape[-1])


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def attend_by_hand(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, L, E) on (B, S, E), head by head."""
    size, found = q.shape[-1] // heads, []
    for i in range(heads):
        one = slice(i * size, (i + 1) * size)
        scores = (q[..., one] @ k[..., one].transpose(1, 2) / math.sqrt(size)).exp()
        found.append(scores / scores.sum(-1, keepdim=True) @ v[..., one])
    return torch.cat(found, -1)


def by_hand(psi: Adapter, h: Tensor, z: Tensor, at: Callable[[Tensor], Tensor]) -> Tensor:
    """The docstrings' equations, for h (B, P, C)."""

    def linear(map_: nn.Linear, x: Tensor) -> Tensor:
        return torch.einsum("oi,...i->...o", map_.weight, x) + (0 if map_.bias is None else map_.bias)

    if isinstance(psi, Film):
        gamma, beta = linear(psi.linear, z)[..., :C], linear(psi.linear, z)[..., C:]
        return (1 + at(gamma)) * h + at(beta)
    if isinstance(psi, Gate):
        return at(2 * sigmoid(linear(psi.linear, z))) * h
    if isinstance(psi, Additive):
        return h + at(z @ psi.down.weight.T @ psi.up.weight.T + psi.up.bias)
    if isinstance(psi, Concat):
        weight = torch.cat([psi.hidden.weight, psi.linear.weight], dim=1)
        return torch.cat([h, at(z).expand(*h.shape[:2], D)], -1) @ weight.T + psi.linear.bias
    if isinstance(psi, Attention):
        c = linear(psi.expand, z.reshape(len(z), -1, D)).reshape(len(z), -1, D)
        found = attend_by_hand(linear(psi.query, h), linear(psi.key, c), linear(psi.value, c), psi.heads)
        return h + linear(psi.out, found)
    assert isinstance(psi, Recurrent)
    w_r, w_u, w_n = (at(part) for part in linear(psi.linear, z).split(C, -1))
    r = sigmoid(h @ psi.gates.weight[:C].T + w_r)
    u = sigmoid(h @ psi.gates.weight[C:].T + w_u)
    n = torch.tanh((r * h) @ psi.candidate.weight.T + w_n)
    return h + psi.scale * u * (n - h)


def scaled(h: Tensor, heads: int = 2, mask: Tensor | None = None) -> Tensor:
    """Self-attention of (B, N, C) in heads."""
    q = h.unflatten(-1, (heads, -1)).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).transpose(1, 2).flatten(2)


def answer(psi: Adapter, h: Tensor, z: Tensor, mask: Tensor | None = None, causal: bool = True) -> Tensor:
    """h', or for tokens what self-attention over h then gives, its own mask being as a backbone's."""
    wants = {"mask": mask} if psi.wants_mask else {}
    if not isinstance(psi, Token):
        return psi(h, z, **wants)
    count = h.shape[1]
    seen = torch.ones(count, count).tril().bool() if causal else torch.ones(count, count).bool()
    seen = seen[None] if mask is None else seen[None] & (mask[:, None, :] > 0)
    with attending([psi]):
        assert psi(h, z, **wants) is h
        return scaled(h, mask=(seen | torch.eye(count).bool())[:, None])
