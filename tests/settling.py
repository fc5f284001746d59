"""Loops that settle, for the checks of the fixed-point side."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

import torchcbl as cbl
from backbones import CASES
from torchcbl.halting import Halting, Progress

KINDS = [(name, cut) for name, case in CASES.items() for cut in dict.fromkeys((case.cut, "replayed"))]
STEPS = 5


@functools.cache
def built(name: str, cut: str, schedule: str = "repropagate", alpha: float = 0.0, dim: int = 3) -> cbl.ContextLoop:
    """Build a loop in float64 with awake adapters that contract."""
    torch.manual_seed(3)
    case = CASES[name]
    net = cbl.ContextLoop(case.build().double(), case.sites, case.example().double(), "concat", cbl.Context(dim=dim),
                          STEPS, alpha, schedule, cut=cut, step_norm="frozen", allow_dead=True)  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in net.adapters.values():
            module.hidden.weight.mul_(0.5)  # type: ignore[union-attr, operator]
        for parameter in net.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def batch(name: str, size: int = 5) -> Tensor:
    return CASES[name].example(size).double()


def summary(r: cbl.Refinement, rows: object = slice(None)) -> list[Tensor]:
    return [*(y[rows] for y in r.outputs), r.residuals[:, rows], r.steps[rows], r.status[rows], r.evaluations[rows]]  # type: ignore[index]


def close(one: cbl.Refinement, other: cbl.Refinement, rows: object, error: float = 1e-9) -> None:
    for a, b in zip(summary(one), summary(other, rows), strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


def tensor_of(returned: object) -> Tensor:
    found = returned["out"] if isinstance(returned, dict) else returned
    assert isinstance(found, Tensor)
    return found


class Leaving(Halting):
    """Sample i goes at a step of its own."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        when = memory[0] if isinstance(memory, tuple) and memory else torch.tensor(self.steps)
        return progress.step >= when, (when,)
