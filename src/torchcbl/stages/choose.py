"""Choosing a cut: traced where torch.fx gives the same numbers, replayed where not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchcbl.backbone.calls import Call, evaluating, in_mode
from torchcbl.backbone.names import submodules
from torchcbl.backbone.observation import Unfused, eagerly, observe
from torchcbl.backbone.probing import unmoved
from torchcbl.stages.autocast import under_autocast
from torchcbl.stages.base import Cut, Plan, close, tensors_in
from torchcbl.stages.noise import generators_kept
from torchcbl.stages.replayed import ReplayedCut
from torchcbl.stages.traced import TracedCut
from torchcbl.stages.tracing import NotTraceable, buffers_kept
from torchcbl.step_norm import StepNorm

CutMode = Literal["auto", "traced", "replayed"]


def choose_plan(backbone: nn.Module, plan: Plan, call: Call, mode: str) -> tuple[Plan, Cut]:
    """Find a cut that gives the backbone's own numbers for the example.

    Args:
        backbone: The network.
        plan: What is to be cut where; its kind is what is found.
        call: The example.
        mode: "auto", "traced" or "replayed".

    Returns:
        The plan, and a cut that knows which modules run again at every step.

    Raises:
        ValueError: `mode` is unknown, is "traced" and the backbone cannot be traced (the message says why), or the
            backbone is not deterministic in eval mode.
    """
    if mode not in ("auto", "traced", "replayed"):
        raise ValueError(f"cut must be 'auto', 'traced' or 'replayed', got {mode!r}.")
    _check_repeatable(backbone, call)
    reason = "asked for"
    if mode != "replayed":
        try:
            return _try(backbone, replace(plan, kind="traced"), call)
        except NotTraceable as error:
            reason = str(error)
        if mode == "traced":
            raise ValueError(
                f"{type(backbone).__name__} cannot be traced: {reason}. Leave cut at 'auto', which replays it."
            )
    try:
        return _try(backbone, replace(plan, kind="replayed", reason=reason), call)
    except NotTraceable as error:
        raise ValueError(
            f"running {type(backbone).__name__} again from its lowest site gives another output than running it whole: "
            "it keeps state between calls or writes into tensors below a site. Choose other sites, or wrap the part "
            "of it that has no state."
        ) from error


def make_cut(backbone: nn.Module, plan: Plan, step_norm: StepNorm | None) -> Cut:
    """Cut the backbone as planned."""
    return (TracedCut if plan.kind == "traced" else ReplayedCut)(backbone, plan, step_norm)


def _check_repeatable(backbone: nn.Module, call: Call) -> None:
    """Run the backbone twice to see that it is a function of its input, and leaves that alone."""
    fresh = call.detached()
    before = [value._version for value in tensors_in(fresh.values())]
    outputs = [tensors_in(_reference(backbone, one)) for one in (fresh, call.detached())]
    if [value._version for value in tensors_in(fresh.values())] != before:
        raise ValueError(
            f"{type(backbone).__name__} writes into its input, which every step needs as it was: replace the write "
            "(add_, mul_, x[...] =, inplace=True) in its forward, or clone the input there first."
        )
    if not _all_same(*outputs):
        names = submodules(backbone)
        first, again = (observe(backbone, names, call.detached()) for _ in range(2))
        differing = [name for name in names if not _all_same(*(tensors_in(o[name].output) for o in (first, again)))]
        where = f", first in what '{min(differing, key=lambda n: first[n].order)}' returns" if differing else ""
        raise ValueError(
            f"{type(backbone).__name__} gives two different outputs for the same example in eval mode{where}: a loop "
            "needs "
            "a backbone that is deterministic and keeps no state between calls. Reset the state in its forward, or "
            "pass "
            "it in and out as an argument."
        )


def _reference(backbone: nn.Module, call: Call, replayed: bool = False) -> object:
    """Return the backbone's output for a call of its own, as a replay has to give it if so asked."""
    mode = Unfused() if replayed else contextlib.nullcontext()
    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly(), mode:
        return call.run(backbone)


def _try(backbone: nn.Module, plan: Plan, call: Call) -> tuple[Plan, Cut]:
    """Cut as planned and check both directions: step 0, and two reruns that change nothing."""
    if plan.kind == "traced" and not all(isinstance(value, Tensor) for value in call.values()):
        raise NotTraceable("an argument is not a tensor")
    expected = _reference(backbone, call.detached(), replayed=plan.kind == "replayed")
    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly():
        draft = make_cut(backbone, plan, None)
        try:
            plan = replace(plan, writes=_find_writes(backbone, draft, call))
            cut = draft.replanned(plan, None) if plan.writes else draft
            first = cut.first(call.detached())
            outputs = [first.returned, *(cut.rerun(first, lambda _, raw: raw, step).returned for step in (1, 2))]
        except NotTraceable:
            raise
        except Exception as error:
            if plan.kind != "traced":
                raise
            raise NotTraceable(f"its traced graph does not run: {error}") from error
    if any(pytree.tree_structure(output) != pytree.tree_structure(expected) for output in outputs):
        raise NotTraceable("its traced graph returns another type")
    if not all(_all_same(tensors_in(output), tensors_in(expected)) for output in outputs):
        raise NotTraceable("its traced graph gives other numbers")
    if plan.kind == "traced":
        _check_gradients(backbone, cut, call)
    return plan, draft


def _check_gradients(backbone: nn.Module, cut: Cut, call: Call) -> None:
    """Compare gradients and autocast, which a trace loses where the forward has contexts or backwards of its own."""
    with torch.inference_mode(False), evaluating(backbone):
        theirs = _gradients(backbone, call, lambda detached: detached.run(backbone))
        ours = _gradients(backbone, call, lambda detached: cut.first(detached).returned)
        runs = (lambda detached: detached.run(backbone), lambda detached: cut.first(detached).returned)
        (lowered, plain), (kept, traced) = under_autocast(call, runs)
    for a, b in zip(ours, theirs, strict=True):
        if (a is None) != (b is None) or (a is not None and b is not None and not close(a, b)):
            raise NotTraceable("its traced graph gives other gradients")
    dtypes = [[value.dtype for value in outputs] for outputs in (plain, traced)]
    if lowered != kept or dtypes[0] != dtypes[1] or not _all_same(plain, traced):
        raise NotTraceable("its traced graph gives other numbers under autocast")


def _gradients(backbone: nn.Module, call: Call, run: Callable[[Call], object]) -> list[Tensor | None]:
    """Gradients of a fixed projection of the output with respect to parameters and floating-point inputs."""
    detached = call.detached()
    inputs = [value for value in detached.values() if isinstance(value, Tensor) and value.is_floating_point()]
    leaves = [value.requires_grad_() for value in inputs]
    given = dict(zip(map(id, inputs), (leaf * 1 for leaf in leaves), strict=True))  # which may be written in place
    with torch.enable_grad():
        fresh = Call(
            tuple(given.get(id(value), value) for value in detached.args),
            {name: given.get(id(value), value) for name, value in detached.kwargs.items()},
        )
        outputs = [output for output in tensors_in(run(fresh)) if output.requires_grad]
        wanted = [*(p for p in backbone.parameters() if p.requires_grad), *leaves]
        if not outputs:
            return [None] * len(wanted)
        projected = torch.stack([_project(output) for output in outputs]).sum()
        return list(torch.autograd.grad(projected, wanted, allow_unused=True))


def _project(output: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, output.numel(), device=output.device).to(output.dtype).view_as(output)
    return (output * weights).sum()


def _find_writes(backbone: nn.Module, cut: Cut, call: Call) -> dict[str, tuple[str, ...]]:
    """Find writes in place in both modes; what training writes into buffers and takes from the generators is undone."""
    writes = cut.find_writes(call.detached())
    if isinstance(cut, ReplayedCut):
        # batch norm wants more than one value per channel; an example without shows no more
        with (
            generators_kept(backbone),
            buffers_kept(backbone),
            in_mode(True, backbone),
            contextlib.suppress(ValueError),
        ):
            writes = {**writes, **cut.find_writes(call.detached())}
    return writes


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(unmoved(a, b).all())


def _all_same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(_same, some, others))
