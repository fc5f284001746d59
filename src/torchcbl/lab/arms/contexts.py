"""Contexts for controls: what is fed back is nothing, another sample's, the first step's, or the label's."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchcbl import ContextLoop
from torchcbl.backbone.calls import Call
from torchcbl.rollout import LoopMap
from torchcbl.schedules import Psi

LABEL_LOGIT = 5.0
"""Height of the true class in the logits that an oracle is shown, about that of a trained network's own."""


class ZeroContext(nn.Linear):
    """z = 0 (B, D), with the parameters of the affine map, which never learn.

    Example:
        >>> ZeroContext(10, 3)(torch.ones(2, 10)).tolist()
        [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """

    def forward(self, source: Tensor) -> Tensor:
        """Map logits (B, K) to zeros (B, D)."""
        return super().forward(source) * 0.0 + 0.0  # no negative zeros


class ShuffledContext(nn.Linear):
    """z of another sample of the batch, the same one at every step: z_i = W y_p(i) + b with p(i) != i.

    p is one cycle through the batch, drawn once for each batch size; training batches are themselves shuffled.

    Raises:
        ValueError: The batch has one sample, which has no other.
    """

    def forward(self, source: Tensor) -> Tensor:
        """Map logits (B, K) to the contexts of others (B, D)."""
        return super().forward(source[another_sample(len(source)).to(source.device)])


def another_sample(size: int) -> Tensor:
    """Say for each of `size` samples which other one stands in for it: one random cycle, always the same.

    Raises:
        ValueError: There is only one sample.

    Example:
        >>> partner = another_sample(5)
        >>> bool((partner != torch.arange(5)).all()), sorted(partner.tolist())
        (True, [0, 1, 2, 3, 4])
    """
    if size < 2:
        raise ValueError("shuffled-context needs another sample in the batch, got a batch of one: pass two or more.")
    order = torch.randperm(size, generator=torch.Generator().manual_seed(size))
    partner = torch.empty_like(order)
    partner[order] = order.roll(1)
    return partner


_first: ContextVar[list[Tensor] | None] = ContextVar("first context of the running call", default=None)


class FrozenContext(nn.Linear):
    """z_0 at every step: made of the first answer of the call and kept; only inside a `FrozenLoop`."""

    def forward(self, source: Tensor) -> Tensor:
        """Map logits (B, K) to the z (B, D) of this call's step 0.

        Raises:
            ValueError: It runs outside a `FrozenLoop`, or samples have left the batch since.
        """
        kept = _first.get()
        if kept is None:
            raise ValueError("FrozenContext runs outside a FrozenLoop, which says where a call begins: use that.")
        z = super().forward(source)  # at every step, so that its cost is the method's
        if not kept:
            kept.append(z)
        if len(kept[0]) != len(source):
            raise ValueError(
                f"frozen-context keeps z of {len(kept[0])} samples, but {len(source)} are left in the batch: run it "
                "without a stopping rule."
            )
        return kept[0]


class FrozenLoop(ContextLoop):
    """A loop whose `FrozenContext` forgets between calls; two threads may call it at once."""

    @contextmanager
    def mapped(self, call: Call, psi: list[Psi] | None = None) -> Iterator[LoopMap]:  # type: ignore[override]
        """See `ContextLoop.mapped`."""
        token = _first.set([])
        try:
            with super().mapped(call, psi) as g:
                yield g
        finally:
            _first.reset(token)


_labels: ContextVar[Tensor | None] = ContextVar("labels an oracle is told", default=None)


@contextmanager
def told(labels: Tensor | None) -> Iterator[None]:
    """Tell oracles the classes (B,) of the samples for as long as this is open."""
    token = _labels.set(labels)
    try:
        yield
    finally:
        _labels.reset(token)


class LabelContext(nn.Linear):
    """z of the true class: z = W (c e_label) + b, with c = `LABEL_LOGIT`; what the network says is not looked at."""

    def forward(self, source: Tensor) -> Tensor:
        """Map logits (B, K), whose form alone counts, to the contexts of the labels (B, D).

        Raises:
            ValueError: The labels were not told, or are of another number of samples.
        """
        labels = _labels.get()
        if labels is None or len(labels) != len(source):
            got = "none" if labels is None else f"{len(labels)}"
            raise ValueError(f"label-context must be told the {len(source)} labels, got {got}: pass target=.")
        return super().forward(LABEL_LOGIT * F.one_hot(labels, source.shape[-1]).to(source))
