"""Early exit: what accuracy costs when each sample stops as soon as a rule lets it go."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.halting import Agreement, Confidence, Halting, Progress
from torchcbl.lab.measures.calibration import correct

PROBABILITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Exit:
    """What came out with one stopping rule.

    Args:
        rule: "confidence" or "agreement".
        level: The probability, or the number of steps that must agree.
        first: The first step after which the rule is asked: 1 as in the library's `halting=`, 0 where the first
            answer may be the last.
        accuracy: Fraction classified rightly, in [0, 1].
        steps: Refinement steps taken on average, in [0, T].
        flops: FLOPs per sample on average.

    Raises:
        ValueError: The accuracy is no fraction.
    """

    rule: str
    level: float
    first: int
    accuracy: float
    steps: float
    flops: float

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise ValueError(f"an exit's accuracy must be a fraction in [0, 1], got {self.accuracy}")


def exits(logits: Tensor, labels: Tensor, flops_first: float, flops_step: float) -> tuple[Exit, ...]:
    """Work out all rules from the answers of all steps; none without a loop.

    Args:
        logits: (T + 1, N, K).
        labels: (N,).
        flops_first: FLOPs per sample of step 0.
        flops_step: FLOPs per sample of each further step.
    """
    if len(logits) < 2:
        return ()
    rules: list[tuple[str, float, int, Halting]] = [
        ("confidence", p, first, Confidence(p)) for first in (0, 1) for p in PROBABILITIES
    ]
    rules += [("agreement", k, 1, Agreement(k)) for k in range(1, len(logits) - 1)]
    right, found = correct(logits, labels), []
    for name, level, first, rule in rules:
        stops = stopping_steps(logits, rule, first)
        steps = float(stops.double().mean())
        accuracy = float(right.gather(0, stops[None]).double().mean())
        found.append(Exit(name, float(level), first, accuracy, steps, flops_first + steps * flops_step))
    return tuple(found)


def stopping_steps(logits: Tensor, rule: Halting, first: int = 1) -> Tensor:
    """Say after which step each sample stops, (N,) in 0..T: as `net.refine(x, halting=rule)` does where `first` is 1.

    Args:
        logits: (T + 1, N, K).
        rule: One that looks at outputs alone, not at residuals.
        first: The first step after which it is asked, 0 or 1; at step 0 there is no answer before.

    Example:
        >>> logits = torch.tensor([[[9.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.1, 0.0]]])
        >>> stopping_steps(logits, Confidence(0.9)), stopping_steps(logits, Confidence(0.9), first=0)
        (tensor([1, 2]), tensor([0, 2]))
    """
    last, memory = len(logits) - 1, rule.begin()
    stops = torch.full(logits.shape[1:2], last)
    running = torch.ones_like(stops, dtype=torch.bool)
    unknown = logits.new_full(logits.shape[1:2], torch.nan)
    for step in range(first, last):
        progress = Progress(step, unknown, logits[step], logits[max(0, step - 1)])
        done, memory = rule.done(progress, memory)
        stops[running & done] = step
        running &= ~done
    return stops
