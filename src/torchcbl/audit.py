"""The audit: which adapters can move the output, and what the loop costs."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from torchcbl.adapters import bind
from torchcbl.assembly import made_up
from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.causality import check_causal
from torchcbl.backbone.language import without_cache
from torchcbl.backbone.layout import Key
from torchcbl.backbone.observation import Unfused
from torchcbl.backbone.probing import distance, move_at_random, noise_like
from torchcbl.schedules import Psi, find_schedule

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


@dataclass(frozen=True)
class AdapterAudit:
    """What the audit found of one adapter.

    Args:
        site: Its site's name.
        shape: Shape of h in the audited batch.
        adapter: Its class name.
        parameters: How many it has.
        gradient: Largest absolute gradient of a random projection of y_T with respect to its parameters (or, when it
            has none to train, to what it returns).
        change: Largest absolute change of y_T when its parameters (or what it returns) are perturbed at random; what is
            NaN before and after has not changed.
    """

    site: str
    shape: tuple[int, ...]
    adapter: str
    parameters: int
    gradient: float
    change: float

    @property
    def live(self) -> bool:
        """Whether it can move the output: by either measure."""
        return self.gradient != 0.0 or self.change != 0.0


@dataclass(frozen=True)
class Audit:
    """What `net.audit()` returns.

    Args:
        adapters: One entry per site, from the lowest to the highest.
        backbone: Class name of the backbone.
        schedule: The schedule it holds for.
        steps: T it holds for.
        alpha: alpha it holds for.
        step_norm: How batch norms normalise at the steps, empty when none is in the replayed part.
        solving: Solver, gradient rule and stopping rule, as far as they are not the plain loop's.
        cut: "traced" or "replayed", with the reason for the latter.
        backbone_parameters: Parameters of the backbone.
        added_parameters: Parameters of adapters and context together.
        flops_first: FLOPs per sample of y_0, and of what a call does once to hold a contractive loop to its bound.
        flops_step: FLOPs per sample of each further step.
    """

    adapters: tuple[AdapterAudit, ...]
    backbone: str
    schedule: str
    steps: int
    alpha: float
    step_norm: str
    solving: str
    cut: str
    backbone_parameters: int
    added_parameters: int
    flops_first: float
    flops_step: float

    @property
    def dead(self) -> tuple[str, ...]:
        """Sites whose adapters cannot move the output."""
        return tuple(adapter.site for adapter in self.adapters if not adapter.live)

    @property
    def cost(self) -> float:
        """FLOPs of y_T relative to those of y_0: 1 + T * share, when all T steps are taken, one evaluation each."""
        return 1.0 + self.steps * self.flops_step / self.flops_first if self.flops_first else float("nan")

    def describe(self, title: str = "Audit", measures: bool = True) -> str:
        """Write the audit as text, with or without the two measures of liveness."""
        rows: list[tuple[str, ...]] = [("site", "h", "adapter", "live", "parameters", "gradient", "change")]
        for a in self.adapters:
            shape = " x ".join(map(str, ("B", *a.shape[1:])))
            live = "live" if a.live else "DEAD"
            rows.append((a.site, shape, a.adapter, live, f"{a.parameters:,}", f"{a.gradient:.1e}", f"{a.change:.1e}"))
        if not measures:
            rows = [row[:-2] for row in rows]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        table = ["  " + "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        norm = f", step_norm={self.step_norm}" if self.step_norm else ""
        added, backbone = self.added_parameters, self.backbone_parameters
        share = f" ({added / backbone:.1%})" if backbone else ""
        solving = f", {self.solving}" if self.solving else ""
        settings = f"{self.schedule}, steps={self.steps}, alpha={self.alpha:g}{norm}{solving}"
        return "\n".join(
            [
                f"{title}({self.backbone}, {settings}, {self.cut})",
                *table,
                f"  parameters: {backbone:,} in the backbone, {added:,} added{share}",
                f"  FLOPs per sample: {_si(self.flops_first)} for y_0, {_si(self.flops_step)} for each step: "
                f"{self.cost:.2f}x at T = {self.steps}",
            ]
        )

    def __str__(self) -> str:
        return self.describe()


def dead_adapters_message(audit: Audit) -> str:
    """Explain why adapters cannot move the output, and what to do."""
    dead = ", ".join(f"'{site}'" for site in audit.dead)
    head = f"the adapter at {dead} cannot move the output y_{audit.steps}"
    if audit.alpha == 1.0:
        why = "alpha = 1 keeps the old state whole, so no adapter is ever heard. Use alpha < 1"
    elif audit.schedule == "literal" and len(audit.adapters) > 1:
        why = (
            "under schedule='literal' Eq. 8 recomputes the output from the top site alone, y = f(h^L), so what a lower "
            "site refines never reaches it. Use schedule='repropagate' (or 'synchronous')"
        )
    elif audit.schedule == "synchronous" and audit.steps < len(audit.adapters):
        why = (
            f"under schedule='synchronous' a refinement climbs one site per step, so the lowest of "
            f"{len(audit.adapters)} sites needs steps >= {len(audit.adapters)}, got {audit.steps}. "
            "Use more steps, or schedule='repropagate'"
        )
    elif any(adapter.adapter == "Token" for adapter in audit.adapters if not adapter.live):
        why = (
            "no attention layer that torch computes (scaled_dot_product_attention, nn.MultiheadAttention) runs "
            "between it "
            "and the next site. Choose an earlier site, build a transformers model with attn_implementation='sdpa', or "
            "use adapter='attention'"
        )
    else:
        why = (
            "no path leads from that site to the output, which Eq. 8 recomputes from the sites. "
            "Choose a site on the path"
        )
    return f"{head}: {why}, or pass allow_dead=True to keep it all the same."


def audit_loop(net: ContextLoop, call: Call, measures: bool = True) -> Audit:
    """Audit a loop on one batch, in eval mode.

    Without `measures`, y_T's change is asked only where the gradient does not show that an adapter is live already,
    and is NaN elsewhere: that takes a run of the loop for every adapter.
    """
    config = net.config
    with torch.inference_mode(False), evaluating(net):
        first, step = _count_flops(net, call)
    adapters = _audit_adapters(net, call, measures)
    added = [*net.adapters.parameters(), *net.context.parameters()]
    batch = net.sites[0].shape[0]
    cut = net.plan.kind + (f": {net.plan.reason}" if net.plan.reason not in ("", "asked for") else "")
    return Audit(
        adapters=adapters,
        backbone=type(net.backbone).__name__,
        schedule=config.schedule,
        steps=config.steps,
        alpha=config.alpha,
        step_norm=config.step_norm if net.has_batch_norm else "",
        solving=config.settings.describe(),
        cut=cut,
        backbone_parameters=_count(net.backbone.parameters()),
        added_parameters=_count(added),
        flops_first=first / _batch_size(call, batch),
        flops_step=step / _batch_size(call, batch),
    )


def check_loop_is_causal(net: ContextLoop, call: Call, names: Sequence[Key]) -> None:
    """Refuse adapters and contexts that show positions what comes later in the arguments so named.

    Where the backbone's weights keep them from showing anything, a copy is asked whose weights are moved at random.
    """
    steps = net.config.steps or find_schedule(net.config.schedule).min_steps(len(net.sites))

    def is_sure(loop: ContextLoop) -> bool:
        psi = [_perturbed(adapter) for adapter in loop.adapters.values()]
        return check_causal(
            loop.sites, psi, call, names, lambda given, moved: loop.run(given.detached(), steps, moved).outputs[-1]
        )

    with torch.inference_mode(False), torch.no_grad(), evaluating(net):
        if not is_sure(net):
            is_sure(_moved_at_random(net))


def audit_at_random(net: ContextLoop, known: Audit, call: Call) -> Audit:
    """Audit the adapters that are dead so far on a copy of the loop whose backbone's weights are moved at random.

    They are tried on the example, then on seeded noise in its form. An example of zeros silences a gate, and a last
    layer that starts at zero silences everything; neither makes an adapter dead for good. What is dead here too has no
    path to the output. What else is known of the loop stays.
    """
    twin = _moved_at_random(net)
    batches = [call]
    with contextlib.suppress(ValueError):  # the backbone fails on noise
        batches.append(made_up(net.config.example, twin.backbone))
    for batch in batches:
        pairs = zip(known.adapters, _audit_adapters(twin, batch, measures=False), strict=True)
        known = replace(known, adapters=tuple(old if old.live else new for old, new in pairs))
    return known


def _moved_at_random(net: ContextLoop) -> ContextLoop:
    """Copy a loop and move the weights of the copy's backbone."""
    twin = copy.deepcopy(net)
    move_at_random(twin.backbone)
    return twin


def _batch_size(call: Call, default: int) -> int:
    sizes = [value.shape[0] for value in call.values() if isinstance(value, Tensor) and value.ndim]
    return sizes[0] if sizes else default


def _count(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in set(parameters))


def _count_flops(net: ContextLoop, call: Call) -> tuple[int, int]:
    """FLOPs of step 0 and of each further step, for the whole batch."""
    call = without_cache(net.backbone, call.detached())
    # what is fused is not counted, and on the CPU that is all of attention but its plain form
    with torch.no_grad(), Unfused(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        with net.mapped(call) as g:
            first = counter.get_total_flops()
            g.roll(1, measure=False)
        return first, counter.get_total_flops() - first


def _audit_adapters(net: ContextLoop, call: Call, measures: bool) -> tuple[AdapterAudit, ...]:
    # a loop with steps = 0 is judged by the fewest steps that would make it live
    steps = net.config.steps or find_schedule(net.config.schedule).min_steps(len(net.sites))
    adapters = list(net.adapters.values())
    with torch.inference_mode(False), evaluating(net):
        gradients = _gradients(net, call, steps, adapters)
        asked = [index for index, gradient in enumerate(gradients) if measures or gradient == 0.0]
        changes = dict.fromkeys(range(len(adapters)), math.nan) | _changes(net, call, steps, adapters, asked)
    return tuple(
        AdapterAudit(site.name, site.shape, type(adapter).__name__, _count(adapter.parameters()), gradient, changes[i])
        for i, (site, adapter, gradient) in enumerate(zip(net.sites, adapters, gradients, strict=True))
    )


def _changes(
    net: ContextLoop, call: Call, steps: int, adapters: Sequence[nn.Module], asked: Sequence[int]
) -> dict[int, float]:
    changes: dict[int, float] = {}
    if not asked:
        return changes
    with torch.no_grad():
        others = {index: _perturbed(adapters[index]) for index in asked}
        with net.mapped(without_cache(net.backbone, call.detached())) as g:
            reference = g.roll(steps, measure=False).outputs[-1]
            for index, other in others.items():
                moved = g.adapted([*adapters[:index], other, *adapters[index + 1 :]]).roll(steps, measure=False)
                changes[index] = _largest(distance(moved.outputs[-1], reference))
    return changes


def _gradients(net: ContextLoop, call: Call, steps: int, adapters: Sequence[nn.Module]) -> list[float]:
    probes: dict[int, Tensor] = {}

    def probed(index: int, adapter: nn.Module) -> Psi:
        bound = bind([adapter], mask=None, tokens=None)[0]

        def psi(h: Tensor, z: Tensor) -> Tensor:
            version = h._version
            refined = bound(h, z)
            if h._version != version:
                raise ValueError(
                    f"{type(adapter).__name__} writes into the hidden state it is given, which later steps need: "
                    "return a new tensor."
                )
            if index not in probes:
                probes[index] = torch.zeros_like(refined, requires_grad=True)
            return refined + probes[index]

        return psi

    with torch.enable_grad():
        probes_in = [probed(i, adapter) for i, adapter in enumerate(adapters)]
        output = net.run(call.detached(), steps, probes_in).outputs[-1]
        projection = (output * noise_like(output, seed=0)).sum()
        if not projection.requires_grad:  # nothing that is trained leads to the output
            return [0.0] * len(adapters)
        wanted: list[list[Tensor]] = [
            [p for p in adapter.parameters() if p.requires_grad] or [probes[index]]
            for index, adapter in enumerate(adapters)
        ]
        found = iter(torch.autograd.grad(projection, [one for own in wanted for one in own], allow_unused=True))
        each = [[next(found) for _ in own] for own in wanted]
    return [max((_largest(g) for g in own if g is not None), default=0.0) for own in each]


def _perturbed(adapter: nn.Module) -> Psi:
    """The adapter with every parameter moved at random; one without parameters returns its h' moved at random."""
    twin = copy.deepcopy(adapter)
    parameters = list(twin.parameters())
    for seed, parameter in enumerate(parameters):
        parameter.add_(noise_like(parameter, seed))
    if parameters:
        return twin
    return lambda h, z: (refined := adapter(h, z)) + noise_like(refined, seed=0)


def _largest(tensor: Tensor) -> float:
    """Largest absolute value; a NaN counts as infinite, since something did arrive."""
    return float(tensor.abs().nan_to_num(nan=float("inf")).max()) if tensor.numel() else 0.0


def _si(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value:.0f} "
