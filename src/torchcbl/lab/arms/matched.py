"""Plain networks that were given what the loop costs: as many parameters, or FLOPs in training, or several networks."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchcbl.lab.arms.base import Arm, Shape, standard_backbone
from torchcbl.lab.arms.loops import Loop
from torchcbl.lab.arms.seeds import derive_seed, example_of, seeded
from torchcbl.lab.costs import count_training_flops
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import Recipe

PARAMETER_TOLERANCE, FLOP_TOLERANCE = 0.01, 0.02
REFERENCE = Loop("cbl")
_HIDDEN, _FINENESS, _LARGEST = 256, 64, 8
Widths = tuple[int, int, int, int]
"""Channels of the three blocks, and units of the first linear layer."""
Scaled = tuple[float, tuple[int, int, int]]
"""A factor, and the channels of the three blocks at it."""
T = TypeVar("T")


@dataclass(frozen=True)
class WiderParams(Arm):
    """The plain network, wider, with as many parameters as `cbl` within 1 %.

    All four widths grow by about the same factor. Holds equal: parameters, data, batches, loss of the answer.
    Isolates: the loop, from the parameters it adds.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        return _wider(widths_by_parameters(recipe, shape, num_classes), shape, num_classes, seed)


@dataclass(frozen=True)
class WiderFlops(Arm):
    """The plain network, wider, that takes as many FLOPs of a training step as `cbl` within 2 %.

    Holds equal: FLOPs of training (forward and backward), data, batches, loss of the answer. It has more parameters
    than `cbl`. Isolates: the loop, from the computation it adds.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        return _wider(widths_by_flops(recipe, shape, num_classes), shape, num_classes, seed)


class Ensemble(nn.Module):
    """Networks of one form that know nothing of each other; the answer is the mean of their probabilities.

    Args:
        members: The networks.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def backbone(self) -> nn.Module:
        """The first member, which `standard` is too."""
        return self.members[0]

    def forward(self, x: Tensor) -> Tensor:
        """Compute the logarithm of the mean probabilities (B, K)."""
        log_probs = torch.stack([F.log_softmax(member(x), dim=-1) for member in self.members])
        return log_probs.logsumexp(0) - math.log(len(self.members))


@dataclass(frozen=True)
class EnsembleArm(Arm):
    """As many plain networks as the training FLOPs of `cbl` pay for, each trained as if alone.

    The number is rounded down, so that it never costs more. Holds equal: training FLOPs, from below; data, batches.
    Isolates: the loop, from what the same money buys elsewhere.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        seeds = [
            seed,
            *(derive_seed(seed, self.name, member) for member in range(1, num_members(recipe, shape, num_classes))),
        ]
        return Ensemble([standard_backbone(recipe, shape, num_classes, one) for one in seeds])

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Sum the members' cross entropies: with Adam, each then learns just as it would alone."""
        assert isinstance(model, Ensemble)
        return torch.stack([F.cross_entropy(member(x), target) for member in model.members]).sum()


MATCHED = (WiderParams, WiderFlops, EnsembleArm)


@lru_cache(maxsize=16)
def widths_by_parameters(recipe: Recipe, shape: Shape, num_classes: int) -> Widths:
    """Find the widths at which the plain network has as many parameters as `cbl`.

    The blocks grow by a common factor, rounded; the linear layer makes up the rest, and the factor is chosen so that it
    grows by about the same.

    Raises:
        ValueError: No widths come within 1 %.
    """
    target = _num_parameters(REFERENCE.build(recipe, shape, num_classes, seed=0))

    @lru_cache
    def hidden_of(blocks: tuple[int, int, int]) -> int:
        one, two = (_num_parameters(_meta((*blocks, hidden), shape, num_classes)) for hidden in (1, 2))
        return 1 + round((target - one) / (two - one))

    def shrunk(scaled: Scaled) -> float:
        """How much less the linear layer has grown than the blocks, in logarithms: the more, the wider those are."""
        hidden = hidden_of(scaled[1])
        return math.log(scaled[0] * _HIDDEN / hidden) if hidden >= 1 else math.inf

    choices = _scaled(recipe.width)
    factor, blocks = min(_around(choices, 0, shrunk), key=lambda scaled: abs(shrunk(scaled)))
    best: Widths | None = (*blocks, hidden_of(blocks)) if shrunk((factor, blocks)) < math.inf else None
    found = _num_parameters(_meta(best, shape, num_classes)) if best else 0
    return _accept(best, found, target, PARAMETER_TOLERANCE, "wider-params", "parameters")


@lru_cache(maxsize=16)
def widths_by_flops(recipe: Recipe, shape: Shape, num_classes: int) -> Widths:
    """Find the widths at which a training step of the plain network takes as many FLOPs as one of `cbl`.

    Raises:
        ValueError: No widths come within 2 %.
    """
    target = training_flops(REFERENCE, recipe, shape, num_classes)

    def miss(widths: Widths) -> float:
        return abs(_plain_flops(widths, shape, num_classes) - target)

    choices = [(*blocks, round(factor * _HIDDEN)) for factor, blocks in _scaled(recipe.width)]
    nearest = min(_around(choices, target, lambda widths: _plain_flops(widths, shape, num_classes)), key=miss)
    if miss(nearest) > FLOP_TOLERANCE * target:  # of narrow networks: one channel is a large step
        a, b, c, hidden = nearest
        moves = itertools.product((-1, 0, 1), repeat=3)
        nearest = min(((max(1, a + i), max(1, b + j), max(1, c + k), hidden) for i, j, k in moves), key=miss)
    return _accept(nearest, _plain_flops(nearest, shape, num_classes), target, FLOP_TOLERANCE, "wider-flops", "FLOPs")


def num_members(recipe: Recipe, shape: Shape, num_classes: int) -> int:
    """Count how many plain networks can be trained for the FLOPs of one `cbl`.

    Raises:
        ValueError: There is room for one alone, which would be `standard` under another name.
    """
    plain = _plain_flops((recipe.width, 2 * recipe.width, 4 * recipe.width, _HIDDEN), shape, num_classes)
    ratio = training_flops(REFERENCE, recipe, shape, num_classes) / plain
    if ratio < 2:
        raise ValueError(
            f"arm 'ensemble' would have a single member, since 'cbl' takes {ratio:.2f} times the training FLOPs of "
            "'standard': take a larger recipe key 'steps', or leave the arm out of --arms."
        )
    return int(ratio)


@lru_cache(maxsize=16)
def training_flops(arm: Arm, recipe: Recipe, shape: Shape, num_classes: int) -> float:
    """Count the FLOPs per sample of a training step of an arm, forward and backward; the optimiser is left out."""
    model = arm.build(recipe, shape, num_classes, seed=0)
    return count_training_flops(lambda x, y: arm.adjusted(recipe).loss(model, x, y), example_of(shape), num_classes)


@lru_cache(maxsize=1024)
def _plain_flops(widths: Widths, shape: Shape, num_classes: int) -> float:
    model = _network(widths, shape, num_classes)
    return count_training_flops(lambda x, y: F.cross_entropy(model(x), y), example_of(shape), num_classes)


def _scaled(width: int) -> list[Scaled]:
    """List factors from 1 up, and the blocks' widths at each, none of them twice."""
    factors = (step / _FINENESS for step in range(_FINENESS, _LARGEST * _FINENESS + 1))
    first = {(round(f * width), round(f * 2 * width), round(f * 4 * width)): f for f in reversed([*factors])}
    return [(factor, blocks) for blocks, factor in reversed(first.items())]


def _around(choices: Sequence[T], target: float, key: Callable[[T], float]) -> Sequence[T]:
    """Of choices with an ever larger key, return the last below a target and the first that is not."""
    place = bisect.bisect_left(choices, target, key=key)
    return choices[max(0, place - 1) : place + 1]


def _network(widths: Widths, shape: Shape, num_classes: int) -> StandardCNN:
    return StandardCNN(num_classes, shape[0], widths[:3], shape[1:], widths[3])


def _wider(widths: Widths, shape: Shape, num_classes: int, seed: int) -> StandardCNN:
    with seeded(seed):
        return _network(widths, shape, num_classes)


def _num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _meta(widths: Widths, shape: Shape, num_classes: int) -> StandardCNN:
    with torch.device("meta"):
        return _network(widths, shape, num_classes)


def _accept(widths: Widths | None, found: float, target: float, tolerance: float, arm: str, what: str) -> Widths:
    if widths is None or abs(found - target) > tolerance * target:
        raise ValueError(
            f"arm '{arm}' cannot match the {target:,.0f} {what} of 'cbl' within {tolerance:.0%}: the nearest network "
            f"has {found:,.0f}. Take a larger recipe key 'width', or leave the arm out of --arms."
        )
    return widths
