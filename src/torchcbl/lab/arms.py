"""The arms of a comparison: the same backbone from the same weights, with and without feedback."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchcbl as cbl
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import ARM_NAMES, Recipe

SITES = ("block1", "block2", "block3")


@dataclass(frozen=True)
class Arm:
    """Say how to build one arm's model and how to compute its loss.

    Args:
        name: The arm's name in recipes and records.
        adapter: Feedback adapter at the three blocks; none is the plain backbone.
        weights: lambda_tau of the loss (Eq. 9): "uniform" or "last".

    Example:
        >>> from torchcbl.lab.recipe import load_recipe
        >>> arm = find_arm("standard")
        >>> model = arm.build(load_recipe("demo"), shape=(1, 8, 8), num_classes=10, seed=0)
        >>> [y.shape for y in arm.outputs(model, torch.zeros(2, 1, 8, 8))]
        [torch.Size([2, 10])]
    """

    name: str
    adapter: str | None = None
    weights: str = "last"

    def build(self, recipe: Recipe, shape: tuple[int, int, int], num_classes: int, seed: int) -> nn.Module:
        """Build the model; for one seed the backbone's first weights are the same in every arm.

        Args:
            recipe: Says the width, the steps, alpha and the context's length.
            shape: (C, H, W) of a sample.
            num_classes: K.
            seed: The run's seed.
        """
        with seeded(seed):
            backbone = StandardCNN(num_classes, shape[0], recipe.width, shape[1:])
        if self.adapter is None:
            return backbone
        with seeded(derive_seed(seed, self.name)):
            return cbl.ContextLoop(
                backbone,
                sites=list(SITES),
                example=example_of(shape),
                adapter=self.adapter,
                context=cbl.Context(dim=recipe.context_dim),
                steps=recipe.steps,
                alpha=recipe.alpha,
                schedule="repropagate",
                step_norm="per_step",
            )

    def outputs(self, model: nn.Module, x: Tensor) -> Sequence[Tensor]:
        """Compute the logits y_0..y_T for samples (B, C, H, W): T + 1 tensors (B, K), one without a loop."""
        return model.refine(x).outputs if isinstance(model, cbl.ContextLoop) else (model(x),)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Compute the training loss: cross entropy, weighted over the steps (Eq. 9) where there is a loop."""
        if isinstance(model, cbl.ContextLoop):
            return cbl.refinement_loss(model.refine(x), target, weights=self.weights)
        return F.cross_entropy(model(x), target)


ARMS = {arm.name: arm for arm in (Arm("standard"), Arm("cbl", "film", "uniform"), Arm("cbl-gate", "gate", "last"))}
assert tuple(ARMS) == ARM_NAMES


def find_arm(name: str) -> Arm:
    """Look an arm up by name.

    Raises:
        ValueError: There is no such arm; the message names the closest.
    """
    if name in ARMS:
        return ARMS[name]
    close = difflib.get_close_matches(name, ARMS, n=1)
    hint = f": did you mean '{close[0]}'?" if close else "."
    raise ValueError(f"unknown arm '{name}'{hint} Arms: {', '.join(ARMS)}.")


def example_of(shape: tuple[int, int, int], size: int = 2) -> Tensor:
    """Draw noise in the form of normalised samples (size, C, H, W); zeros would make every gate look dead."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(size, *shape, generator=generator).contiguous(memory_format=torch.channels_last)


def derive_seed(*parts: object) -> int:
    """Make an independent 63-bit seed of some labels, the same on every machine.

    Example:
        >>> derive_seed(0, "cbl") == derive_seed(0, "cbl") != derive_seed(1, "cbl")
        True
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from torch's generator as seeded here, and leave its state outside untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
