"""What the behaviours are examined on: a loop around some backbone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import torchcbl as cbl

Batch = Mapping[str, Tensor]


class NotApplicableError(Exception):
    """A behaviour that nobody can ask of a backbone; the message says why."""


@dataclass(frozen=True)
class Subject:
    """One loop to examine.

    Args:
        build: Makes the backbone; its weights are drawn after seeding, so all it makes are alike.
        sites: Where feedback goes, from the lowest to the highest.
        batch: Makes a batch of so many samples, always the same first ones.
        adapter: Name of the adapter.
        schedule: Name of the schedule.
        cut: "auto", "traced" or "replayed".
        context: Further arguments of `Context`.
        tolerance: By how much y may differ where torch takes a fused path in inference; 0 for bit for bit.
        reuse: Whether to build the loop once and copy it, where many behaviours are examined one after the other.
    """

    build: Callable[[], nn.Module]
    sites: tuple[str, ...]
    batch: Callable[[int], Batch]
    adapter: str = "film"
    schedule: str = "repropagate"
    cut: str = "auto"
    context: Mapping[str, object] = field(default_factory=dict)
    tolerance: float = 0.0
    reuse: bool = False

    def backbone(self) -> nn.Module:
        torch.manual_seed(3)
        return self.build().eval()

    def make_context(self) -> cbl.Context:
        return cbl.Context(dim=5, **self.context)  # type: ignore[arg-type]

    def net(self, awake: bool = False, **options: object) -> cbl.ContextLoop:
        """Build the loop in eval mode; awake, its adapters are moved away from the identity."""
        net = copy.deepcopy(self._built) if self.reuse and not options else self._build(**options)
        return awaken(net) if awake else net

    @functools.cached_property
    def _built(self) -> cbl.ContextLoop:
        return self._build()

    def _build(self, **options: object) -> cbl.ContextLoop:
        settings: dict[str, object] = {"adapter": self.adapter, "schedule": self.schedule, "cut": self.cut, **options}
        context, backbone = self.make_context(), self.backbone()
        return cbl.ContextLoop(backbone, self.sites, self.batch(2), context=context, allow_dead=True, **settings)  # type: ignore[arg-type]


def awaken(net: cbl.ContextLoop) -> cbl.ContextLoop:
    """Move the adapters away from the identity."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in net.adapters.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return net


def output_of(returned: object) -> Tensor:
    """Find y in what a backbone returns."""
    if isinstance(returned, Tensor):
        return returned
    if isinstance(returned, Mapping):
        found = next((returned[key] for key in ("logits", "last_hidden_state", "out") if key in returned), None)
        returned = list(returned.values()) if found is None else (found,)
    assert isinstance(returned, (tuple, list)), f"no output in {type(returned).__name__}"
    return next(one for one in returned if isinstance(one, Tensor) and one.is_floating_point() and one.ndim >= 2)
