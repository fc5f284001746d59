"""Arms with feedback: the method, and the controls that change nothing but what is fed back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.lab.arms.base import Arm, Shape, standard_backbone
from torchcbl.lab.arms.contexts import told
from torchcbl.lab.arms.seeds import derive_seed, example_of, seeded
from torchcbl.lab.recipe import Recipe
from torchcbl.loss import lambda_weights

SITES = ("block1", "block2", "block3")


@dataclass(frozen=True)
class Loop(Arm):
    """The backbone with feedback at its blocks.

    Args:
        adapter: Feedback adapter, where the recipe names none.
        weights: lambda_tau of the loss (Eq. 9), where the recipe names none.
        adjustable: Whether the recipe's `adapter` and `weights` hold for it.
        map: Makes the context from the logits: called with (K, D); None for the affine map.
        loop: The class of the loop.
        family: Arms of one family start with the same adapters and the same context.
    """

    adapter: str = "film"
    weights: str = "uniform"
    adjustable: bool = True
    map: Callable[[int, int], nn.Module] | None = None
    loop: type[cbl.ContextLoop] = cbl.ContextLoop
    family: str = "cbl"

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`.

        Raises:
            ValueError: There are too few steps for the arm to differ from `cbl`.
        """
        self.check_steps(recipe)
        backbone = standard_backbone(recipe, shape, num_classes, seed)
        example = example_of(shape)
        labels = told(torch.arange(len(example)) % num_classes) if self.oracle else nullcontext()
        with labels, seeded(derive_seed(seed, self.family)):
            return self.loop(
                backbone,
                sites=list(recipe.sites or SITES),
                example=example,
                adapter=self.adjusted(recipe).adapter,
                context=cbl.Context(dim=recipe.context_dim, map=self.map),
                steps=recipe.steps,
                alpha=recipe.alpha,
                schedule=recipe.schedule,
                step_norm=recipe.step_norm,
            )

    def adjusted(self, recipe: Recipe) -> Loop:
        """See `Arm.adjusted`."""
        if not self.adjustable:
            return self
        return replace(self, adapter=recipe.adapter or self.adapter, weights=recipe.weights or self.weights)

    def trains_first(self, recipe: Recipe) -> bool:
        """See `Arm.trains_first`."""
        return lambda_weights(self.adjusted(recipe).weights, recipe.steps)[0] > 0

    def outputs(self, model: nn.Module, x: Tensor, target: Tensor | None = None) -> Sequence[Tensor]:
        """See `Arm.outputs`."""
        with told(target) if self.oracle else nullcontext():
            return super().outputs(model, x, target)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Compute the cross entropy of y_0..y_T, weighted by lambda (Eq. 9)."""
        outputs = self.outputs(model, x, target)
        return cbl.refinement_loss(cbl.Refinement(outputs), target, weights=self.weights)
