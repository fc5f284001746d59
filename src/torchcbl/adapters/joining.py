"""Handing context tokens to the attention calls of a backbone, while a loop runs in this thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Psi = Callable[[Tensor, Tensor], Tensor]
Function = Callable[..., object]


@dataclass(frozen=True)
class Joined:
    """Tokens that attention calls see beside their own keys.

    Args:
        site: Whose they are.
        keys: (B, P, C).
        values: (B, P, C).
        gate: (C,), the factor of what is found among them.
        bias: Given the number of queries and a dtype, what is added to the scores; None for nothing.
    """

    site: str
    keys: Tensor
    values: Tensor
    gate: Tensor
    bias: Callable[[int, torch.dtype], Tensor | None]

    def attend(self, query: Tensor, scale: float | None) -> Tensor:
        """Attend from queries (B, heads, L, d) to the tokens; returns the same shape, times the gate."""
        batch, heads, length, size = query.shape
        if heads * size != self.keys.shape[-1] or batch != self.keys.shape[0]:
            raise ValueError(
                f"the token adapter at site '{self.site}' has tokens for {self.keys.shape[0]} samples of width "
                f"{self.keys.shape[-1]}, but an attention layer after it has a batch of {batch} and width "
                f"{heads} x {size}: choose a site as wide as the attention and not split into windows, or "
                "adapter='attention'."
            )
        keys, values = (x.view(*x.shape[:2], heads, size).transpose(1, 2) for x in (self.keys, self.values))
        bias = self.bias(length, query.dtype)
        found = F.scaled_dot_product_attention(query, keys.to(query), values.to(query), attn_mask=bias, scale=scale)
        return found * self.gate.to(query).view(heads, 1, size)


class Attending(TorchFunctionMode):
    """Add what attention calls find among the tokens that are joined now."""

    def __init__(self) -> None:
        super().__init__()
        self.joined: Joined | None = None

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if self.joined is None or func not in _JOINS:
            return output
        return _JOINS[func](self.joined, output, *args, **(kwargs or {}))


def _join_scaled(
    joined: Joined,
    output: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> object:
    assert isinstance(output, Tensor)
    if query.ndim not in (3, 4) or output.shape != query.shape:
        raise ValueError(
            f"the token adapter at site '{joined.site}' meets attention of queries {tuple(query.shape)} that returns "
            f"{tuple(output.shape)}, expected (B, heads, L, d) or (B, L, d) for both: use adapter='attention'."
        )
    if query.ndim == 3:
        return output + joined.attend(query.unsqueeze(1), scale).squeeze(1)
    return output + joined.attend(query, scale)


def _join_multi_head(
    joined: Joined,
    output: object,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    *rest: object,
    q_proj_weight: Tensor | None = None,
    **named: object,
) -> object:
    """The same for `nn.MultiheadAttention`, whose queries (L, B, E) are projected inside and whose heads are mixed."""
    assert isinstance(output, tuple)
    weight = q_proj_weight if in_proj_weight is None else in_proj_weight[:embed_dim]
    assert weight is not None
    batched = query if query.ndim == 3 else query.unsqueeze(1)
    q = F.linear(batched, weight, None if in_proj_bias is None else in_proj_bias[:embed_dim])
    found = joined.attend(q.view(*q.shape[:2], num_heads, q.shape[-1] // num_heads).permute(1, 2, 0, 3), None)
    mixed = F.linear(found.permute(2, 0, 1, 3).flatten(2), out_proj_weight)
    return (output[0] + mixed.view_as(output[0]), *output[1:])


_JOINS: dict[Function, Function] = {
    F.scaled_dot_product_attention: _join_scaled,
    F.multi_head_attention_forward: _join_multi_head,
}
_thread = threading.local()


def join(joined: Joined) -> None:
    """Let the attention calls that follow in this thread's loop see the tokens, up to the next site."""
    attending: Attending | None = getattr(_thread, "attending", None)
    if attending is not None:
        attending.joined = joined


@contextlib.contextmanager
def attending(adapters: Iterable[object]) -> Iterator[Attending | None]:
    """Watch attention calls if one of the adapters wants them to see tokens."""
    if not any(getattr(adapter, "joins_attention", False) for adapter in adapters):
        yield None
        return
    outer, mode = getattr(_thread, "attending", None), Attending()
    _thread.attending = mode
    try:
        with mode:
            yield mode
    finally:
        _thread.attending = outer


@contextlib.contextmanager
def attending_again(mode: Attending | None) -> Iterator[None]:
    """Watch attention calls as before, as when a step is computed again in the backward pass."""
    if mode is None:
        yield
        return
    outer = getattr(_thread, "attending", None)
    _thread.attending = mode
    try:
        with mode:
            yield
    finally:
        _thread.attending = outer


def resuming() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Remember which tokens are joined now; what is returned joins them again, in whatever thread it is entered."""
    mode: Attending | None = getattr(_thread, "attending", None)
    joined = None if mode is None else mode.joined

    @contextlib.contextmanager
    def resume() -> Iterator[None]:
        if mode is None:
            yield
            return
        outer, again = getattr(_thread, "attending", None), Attending()
        again.joined, _thread.attending = joined, again
        try:
            with again:
                yield
        finally:
            _thread.attending = outer

    return resume


def parting(psi: Psi, mode: Attending) -> Psi:
    """Wrap an adapter so that tokens of the site below leave before it runs."""

    def visit(h: Tensor, z: Tensor) -> Tensor:
        mode.joined = None
        return psi(h, z)

    return visit
