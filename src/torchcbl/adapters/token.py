"""Context tokens among the keys of the backbone's own attention layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcbl.adapters.attention import visible
from torchcbl.adapters.base import Adapter, check_positive
from torchcbl.adapters.joining import Joined, join
from torchcbl.backbone.site import Site


class Token(Adapter):
    """Let the backbone's own attention layers, from this site up to the next, see tokens made of the context.

        K_z, V_z = M tokens from each z (linear maps)
        attention(q, K, V) + g * attention(q, K_z, V_z),        h' = h

    The tokens join the keys and values that attention layers see and leave no trace in the sequence: its length,
    positions and masks stay as they are. g, one number per channel, starts at zero, since tokens within one joint
    softmax would take weight from the others and cannot start as the identity. Where z has positions, all their tokens
    are seen that the call's `attention_mask` admits; in a causal network those of that and earlier positions. For
    transformers whose attention torch computes (`scaled_dot_product_attention`, `nn.MultiheadAttention`); where no
    such layer follows, the adapter is dead, which is an error. Cost: 2 M C (D + 1) + C parameters, and 2 C P M
    multiply-adds per position and layer.

    Args:
        site: Where it stands; the output of a transformer block.
        context_dim: D, the size of z.
        tokens: M, tokens per context vector; at least 1.
        identity: Whether g starts at zero; else at one.

    Raises:
        ValueError: `tokens` is below 1; or, when it runs, an attention layer has another width or batch than the site.

    Source:
        Li and Liang 2021, Prefix-Tuning, arXiv 2101.00190; the gate that starts at zero is that of Zhang et al. 2023,
        LLaMA-Adapter, arXiv 2303.16199.

    Example:
        >>> token = Token(Site("layer1", (8, 7, 16), channel_dim=2), context_dim=5)
        >>> h = torch.randn(8, 7, 16)
        >>> token(h, torch.randn(8, 5)) is h  # what it does, it does to the layers that follow
        True
    """

    wants_mask = True
    joins_attention = True

    def __init__(self, site: Site, context_dim: int, tokens: int = 4, identity: bool = True) -> None:
        super().__init__(site, context_dim)
        check_positive("Token", "tokens", tokens)
        self.tokens = tokens
        self.key = nn.Linear(context_dim, tokens * site.channels)
        self.value = nn.Linear(context_dim, tokens * site.channels)
        self.gate = nn.Parameter(torch.full((site.channels,), 0.0 if identity else 1.0))

    def forward(self, h: Tensor, z: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hand the tokens of z (B, D) or (B, ..., D) to the layers that follow, and return h."""
        context = z.flatten(1, -2) if z.ndim > 2 else z.unsqueeze(1)
        sizes = (z.shape[0], context.shape[1] * self.tokens, self.site.channels)
        keys, values = self.key(context).reshape(sizes), self.value(context).reshape(sizes)

        def bias(queries: int, dtype: torch.dtype) -> Tensor | None:
            return visible(self.site, z, mask, queries, self.tokens, dtype)

        join(Joined(self.site.name, keys, values, self.gate, bias))
        return h
