"""How long an answer takes, by refinement step."""

from __future__ import annotations

import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.lab.arms.contexts import told
from torchcbl.lab.measures.base import Subject
from torchcbl.lab.refining import Refining

BATCHES = (1, 128)
REPEATS = {1: 20, 128: 5}


@dataclass(frozen=True)
class Timing:
    """Seconds per sample; informative only, since they depend on the machine and on what else it does.

    Args:
        batch: Samples in a batch.
        repeats: How often it was timed, after one call that was not.
        seconds: Median wall-clock seconds per sample when the loop stops after step tau = 0..T.
    """

    batch: int
    repeats: int
    seconds: tuple[float, ...]


@torch.no_grad()
def time_answers(subject: Subject, x: Tensor, target: Tensor) -> tuple[Timing, ...]:
    """Time a network on batches of 1 and 128 samples, or of as many as there are.

    Args:
        subject: The network.
        x: Samples (B, C, H, W), two at least.
        target: Their classes (B,).
    """
    depth = len(subject.outputs(x[:2], target[:2]))
    return tuple(_time(subject, x, target, min(size, len(x)), depth) for size in BATCHES)


def _time(subject: Subject, x: Tensor, target: Tensor, size: int, depth: int) -> Timing:
    if size == 1 and _needs_company(subject, x, target):
        size = 2
    x, target = x[:size], target[:size]
    repeats = REPEATS.get(size, min(REPEATS.values()))
    seconds = []
    for step in range(depth):
        runs = [_seconds(subject, x, target, step) for _ in range(1 + repeats)]
        seconds.append(statistics.median(runs[1:]) / size)
    return Timing(size, repeats, tuple(seconds))


def _needs_company(subject: Subject, x: Tensor, target: Tensor) -> bool:
    """Whether a network takes no single sample, as one whose context is another sample's."""
    try:
        subject.outputs(x[:1], target[:1])
    except ValueError:
        return True
    return False


def _seconds(subject: Subject, x: Tensor, target: Tensor, steps: int) -> float:
    begun = time.perf_counter()
    with told(target) if subject.arm.oracle else nullcontext():
        if isinstance(subject.model, Refining):
            subject.model.refine(x, steps=steps)
        else:
            subject.model(x)
    return time.perf_counter() - begun
