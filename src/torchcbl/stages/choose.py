"""Choosing a cut: traced where torch.fx gives the same numbers, replayed where not."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from torchcbl.calls import Call, evaluating
from torchcbl.stages.base import Cut, Plan
from torchcbl.stages.replayed import ReplayedCut
from torchcbl.stages.traced import TracedCut
from torchcbl.stages.tracing import NotTraceable
from torchcbl.step_norm import StepNorm

CutMode = Literal["auto", "traced", "replayed"]


def choose_plan(
    backbone: nn.Module, sites: tuple[str, ...], source: str | None, start: int, call: Call, mode: str
) -> tuple[Plan, dict[str, nn.Module]]:
    """Find a cut that gives the backbone's own numbers for the example.

    Returns:
        The plan, and the modules that run again at every step, by name.

    Raises:
        ValueError: `mode` is unknown, is "traced" and the backbone cannot be traced (the message says why), or the
            backbone is not deterministic in eval mode.
        TypeError: The backbone does not return one tensor.
    """
    if mode not in ("auto", "traced", "replayed"):
        raise ValueError(f"cut must be 'auto', 'traced' or 'replayed', got {mode!r}.")
    expected = _reference(backbone, call)
    plan = Plan("traced", sites, start, call.pattern(), source)
    reason = "asked for"
    if mode != "replayed":
        try:
            return _try(backbone, plan, call, expected)
        except NotTraceable as error:
            reason = str(error)
        if mode == "traced":
            raise ValueError(
                f"{type(backbone).__name__} cannot be traced: {reason}. Leave cut at 'auto', which replays it."
            )
    try:
        return _try(backbone, replace(plan, kind="replayed", reason=reason), call, expected)
    except NotTraceable as error:
        raise ValueError(
            f"running {type(backbone).__name__} again from its lowest site gives another output than running it whole: "
            "it keeps state between calls or writes into tensors below a site. Choose other sites, or wrap the part "
            "of it that has no state."
        ) from error


def make_cut(backbone: nn.Module, plan: Plan, step_norm: StepNorm | None) -> Cut:
    """Cut the backbone as planned."""
    return (TracedCut if plan.kind == "traced" else ReplayedCut)(backbone, plan, step_norm)


def _reference(backbone: nn.Module, call: Call) -> Tensor:
    with torch.no_grad(), evaluating(backbone):
        outputs = [call.detached().run(backbone) for _ in range(2)]
    for output in outputs:
        if not isinstance(output, Tensor):
            raise TypeError(
                f"{type(backbone).__name__} returns {type(output).__name__}, expected one tensor of logits: wrap it in "
                "a module that returns them."
            )
    first, second = outputs
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    if not _same(first, second):
        raise ValueError(
            f"{type(backbone).__name__} gives two different outputs for the same example in eval mode: a loop needs a "
            "deterministic backbone that keeps no state between calls."
        )
    return first


def _try(backbone: nn.Module, plan: Plan, call: Call, expected: Tensor) -> tuple[Plan, dict[str, nn.Module]]:
    """Cut as planned and check both directions: step 0, and two reruns that change nothing."""
    if plan.kind == "traced" and not all(isinstance(value, Tensor) for value in call.values()):
        raise NotTraceable("an argument is not a tensor")
    with torch.no_grad(), evaluating(backbone):
        draft = make_cut(backbone, plan, None)
        try:
            plan = replace(plan, writes=draft.find_writes(call.detached()))
            cut = make_cut(backbone, plan, None)
            first = cut.first(call.detached())
            outputs = [first.output] + [cut.rerun(first, lambda _, raw: raw, step)[0] for step in (1, 2)]
        except Exception as error:
            if plan.kind != "traced":
                raise
            raise NotTraceable(f"its traced graph does not run: {error}") from error
    if not all(_same(output, expected) for output in outputs):
        raise NotTraceable("its traced graph gives other numbers")
    return plan, draft.replayed_modules()


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
