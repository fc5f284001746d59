"""APGD: projected gradient ascent with momentum that halves its step where it no longer gains."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.lab.measures.attack.threat import Attacked, Objective, margin, project

_MOMENTUM, _RHO = 0.75, 0.75


@dataclass
class _State:
    """Where each sample's climb stands; every tensor has the samples first."""

    place: Tensor
    """Which of the samples it is."""
    x: Tensor
    y: Tensor
    now: Tensor
    before: Tensor
    slope: Tensor
    value: Tensor
    best: Tensor
    best_value: Tensor
    best_slope: Tensor
    length: Tensor
    gains: Tensor
    """How often the objective rose since the last checkpoint."""
    halved: Tensor
    """Whether the step was halved at the last checkpoint."""
    reference: Tensor
    """The best objective at the last checkpoint."""

    def only(self, kept: Tensor) -> _State:
        return _State(**{name: value[kept] for name, value in vars(self).items()})


def apgd(
    net: Attacked, x: Tensor, y: Tensor, objective: Objective, aim: int, eps: float, start: Tensor, steps: int = 30
) -> Tensor:
    """Climb with a step size that adapts to each sample (Croce and Hein 2020, arXiv 2003.01690, Algorithm 1).

        z = P(x_k + eta sign(g_k)),   x_{k+1} = P(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})),   eta = 2 eps at first

    At each checkpoint eta is halved, and the climb goes on from the best point, where the objective rose in fewer than
    75% of the steps since the last, or where neither eta nor the best value has changed since. A sample whose answer
    y_aim is wrong is done.

    Args:
        net: The network.
        x: Pixels in [0, 1], (B, C, H, W).
        y: Labels (B,).
        objective: What to maximise.
        aim: The step whose answer is to be wrong.
        eps: Radius of the L_inf ball, in [0, 1].
        start: Where to begin, in units of eps from x, (B, C, H, W) in [-1, 1].
        steps: Gradients, at most.

    Returns:
        For each sample the first point met where y_aim is wrong, else the one with the highest objective.
    """
    found = x.clone()
    if len(x):
        state = _begin(net, x, y, objective, eps, start, aim, found)
        last, gap = 0, max(1, round(0.22 * steps))
        for step in range(1, steps):
            if not len(state.place):
                break
            state = _climb(net, state, objective, eps, aim, found, first=step == 1)
            if step - last == gap:
                state, last, gap = _checkpoint(state, gap), step, max(gap - max(1, round(0.03 * steps)), _least(steps))
    return found


def _least(steps: int) -> int:
    return max(1, round(0.06 * steps))


def _begin(
    net: Attacked, x: Tensor, y: Tensor, objective: Objective, eps: float, start: Tensor, aim: int, found: Tensor
) -> _State:
    now = project(x + eps * start, x, eps)
    value, slope, logits = net.gradient(now, y, objective)
    length = torch.full_like(value, 2 * eps)
    zeros = torch.zeros_like(y)
    state = _State(
        place=torch.arange(len(x)),
        x=x,
        y=y,
        now=now,
        before=now,
        slope=slope,
        value=value,
        best=now,
        best_value=value,
        best_slope=slope,
        length=length,
        gains=zeros,
        halved=zeros.bool(),
        reference=value,
    )
    return _settle(state, logits[aim], found)


def _climb(
    net: Attacked, state: _State, objective: Objective, eps: float, aim: int, found: Tensor, first: bool
) -> _State:
    ahead = project(state.now + _wide(state.length) * state.slope.sign(), state.x, eps)
    if not first:
        moved = state.now + _MOMENTUM * (ahead - state.now) + (1 - _MOMENTUM) * (state.now - state.before)
        ahead = project(moved, state.x, eps)
    value, slope, logits = net.gradient(ahead, state.y, objective)
    state.gains = state.gains + (value > state.value)
    state.before, state.now, state.value, state.slope = state.now, ahead, value, slope
    higher = value > state.best_value
    state.best = torch.where(_wide(higher), ahead, state.best)
    state.best_slope = torch.where(_wide(higher), slope, state.best_slope)
    state.best_value = torch.where(higher, value, state.best_value)
    return _settle(state, logits[aim], found)


def _settle(state: _State, answers: Tensor, found: Tensor) -> _State:
    """Write down the best points, and let go of samples whose answer is wrong."""
    wrong = margin(answers, state.y) < 0
    found[state.place] = torch.where(_wide(wrong), state.now, state.best)
    return state.only(~wrong) if wrong.any() else state


def _checkpoint(state: _State, gap: int) -> _State:
    stuck = ~state.halved & (state.best_value <= state.reference)
    halve = (state.gains < _RHO * gap) | stuck
    state.length = torch.where(halve, state.length / 2, state.length)
    state.now = torch.where(_wide(halve), state.best, state.now)
    state.before = torch.where(_wide(halve), state.best, state.before)
    state.slope = torch.where(_wide(halve), state.best_slope, state.slope)
    state.value = torch.where(halve, state.best_value, state.value)
    state.gains, state.halved, state.reference = torch.zeros_like(state.gains), halve, state.best_value
    return state


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
