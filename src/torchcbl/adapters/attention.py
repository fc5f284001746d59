"""Attention from positions of h to tokens made of the context."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcbl.adapters.base import Adapter, check_positive
from torchcbl.backbone.site import Site


class Attention(Adapter):
    """Let each position of h attend to tokens made of the context, and add what it finds.

        c = M tokens of size D from each z (a linear map)
        h' = h + W_o softmax((W_q h) (W_k c)^T / sqrt(d)) (W_v c)

    Each position picks for itself what it takes from the context, so it suits sequences and feature maps whose
    positions differ. Where z has positions they all are tokens, those that the call's `attention_mask` admits; in a
    causal network a position sees the tokens of that and earlier ones. Cost: M D (D + 1) + E (2 C + 2 D + 3) + C
    parameters (E is `width`), and per position of h 2 C E + 2 E P M multiply-adds, P being the positions of z.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
        tokens: M, tokens per context vector; at least 1. With one, and one z per sample, softmax has no choice to make.
        width: E, size of queries, keys and values; a multiple of `heads`.
        heads: Attention heads; at least 1.
        identity: Whether W_o starts at zero, so that h' = h bit for bit; else as nn.Linear starts.

    Raises:
        ValueError: `tokens`, `width` or `heads` is below 1, or `width` is no multiple of `heads`.

    Source:
        Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762 (cross-attention); the layer beside a frozen
        network that starts at zero is that of Alayrac et al. 2022, Flamingo, arXiv 2204.14198.

    Example:
        >>> attention = Attention(Site("layer1", (8, 16, 4, 4), channel_dim=1), context_dim=5)
        >>> h = torch.randn(8, 16, 4, 4)
        >>> torch.equal(attention(h, torch.randn(8, 5)), h)
        True
    """

    wants_mask = True

    def __init__(
        self, site: Site, context_dim: int, tokens: int = 4, width: int = 32, heads: int = 2, identity: bool = True
    ) -> None:
        super().__init__(site, context_dim)
        for name, value in (("tokens", tokens), ("width", width), ("heads", heads)):
            check_positive("Attention", name, value)
        if width % heads:
            raise ValueError(f"Attention's width must be a multiple of heads, got width={width} and heads={heads}.")
        self.tokens, self.heads = tokens, heads
        self.expand = nn.Linear(context_dim, tokens * context_dim)
        self.query = nn.Linear(site.channels, width)
        self.key = nn.Linear(context_dim, width)
        self.value = nn.Linear(context_dim, width)
        self.out = nn.Linear(width, site.channels)
        if identity:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Refine h (B, C, ...) or (B, ..., C) by z (B, D) or (B, ..., D); the mask (B, N) is of z's positions."""
        positions = self.flat(h)
        context = z.flatten(1, -2) if z.ndim > 2 else z.unsqueeze(1)
        tokens = self.expand(context).reshape(z.shape[0], context.shape[1] * self.tokens, self.context_dim)
        q, k, v = self._split(self.query(positions)), self._split(self.key(tokens)), self._split(self.value(tokens))
        bias = visible(self.site, z, mask, positions.shape[1], self.tokens, q.dtype)
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return h + self.unflat(self.out(found.transpose(1, 2).flatten(2)), h)

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, E) as (B, heads, N, E / heads)."""
        return x.view(*x.shape[:2], self.heads, x.shape[-1] // self.heads).transpose(1, 2)


def visible(site: Site, z: Tensor, mask: Tensor | None, queries: int, tokens: int, dtype: torch.dtype) -> Tensor | None:
    """Return what is added to attention scores so that a query sees what it may, (B or 1, 1, queries, P * tokens).

    Tokens of positions that the mask takes out, and in a causal network of later positions, are not seen. None where
    everything is.

    Raises:
        ValueError: The network is causal, and h has other positions than z.
    """
    if z.ndim != 3:
        return None
    sources = z.shape[1]
    padding = None if mask is None or mask.shape != z.shape[:2] else (mask == 0)[:, None, None, :]
    if padding is None and not site.causal:
        return None
    bias = torch.zeros(1, 1, 1, sources, dtype=dtype, device=z.device)
    if padding is not None:
        # a low number and not minus infinity: a position that sees nothing but padding must not become NaN
        bias = bias.masked_fill(padding, torch.finfo(dtype).min / 2)
    if site.causal:
        if queries != sources:
            raise ValueError(
                f"the context has {sources} positions, but site '{site.name}' has {queries}, so that in this causal "
                "network nobody can tell which are later: choose a site with the output's own positions."
            )
        order = torch.arange(sources, device=z.device)
        bias = bias.masked_fill(order[None, :] > order[:, None], -torch.inf)  # lower than padding's: see no later one
    return bias.expand(-1, -1, queries, -1).repeat_interleave(tokens, dim=-1)
