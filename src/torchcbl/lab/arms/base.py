"""What an arm of a comparison is: how its model is built, what it answers at each step, and its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from torchcbl.lab.arms.seeds import seeded
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import DERIVED_ARMS, Recipe
from torchcbl.lab.refining import Refining

Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Arm(ABC):
    """Say how to build one arm's model and how to compute its loss.

    Run k of every arm sees the same batches, and starts from the same backbone weights where that is the same network.

    Args:
        name: The arm's name in recipes and records.
        isolates: What a difference between `cbl` and this arm is evidence for; a sentence.
        holds_equal: What the two have in common; a sentence.
        oracle: Whether it is told the labels: an upper bound, no competitor.
        fewest: How many samples a batch must have at least.
        fewest_steps: T from which on it is another arm than `cbl`.

    Example:
        >>> import torch
        >>> from torchcbl.lab.arms import find_arm
        >>> from torchcbl.lab.recipe import load_recipe
        >>> arm = find_arm("standard")
        >>> model = arm.build(load_recipe("demo"), shape=(1, 8, 8), num_classes=10, seed=0)
        >>> [y.shape for y in arm.outputs(model, torch.zeros(2, 1, 8, 8))]
        [torch.Size([2, 10])]
    """

    name: str
    isolates: str = ""
    holds_equal: str = ""
    oracle: bool = False
    fewest: int = 1
    fewest_steps: int = 1

    @property
    def derived(self) -> tuple[str, int] | None:
        """The arm and the step that this one is read off, where it is not trained itself."""
        return DERIVED_ARMS.get(self.name)

    @abstractmethod
    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """Build the model; for one seed the standard backbone's first weights are the same in every arm that has it.

        Args:
            recipe: Says the width, the steps, alpha and the other options.
            shape: (C, H, W) of a sample.
            num_classes: K.
            seed: The run's seed.
        """

    def adjusted(self, recipe: Recipe) -> Arm:
        """Return the arm as a recipe wants it, its loss included; most arms are not adjustable."""
        return self

    def check_steps(self, recipe: Recipe) -> None:
        """Check that a recipe has steps enough for the arm to be what its name says.

        Raises:
            ValueError: It would be `cbl` under another name.
        """
        if recipe.steps < self.fewest_steps:
            raise ValueError(
                f"{self.name} needs steps of at least {self.fewest_steps}, got {recipe.steps}: with fewer it would be "
                "'cbl' under another name. Leave the arm out, or ask for more steps."
            )

    def trains_first(self, recipe: Recipe) -> bool:
        """Say whether y_0 has a share in the loss; without one it is no answer to hold y_T against."""
        return True

    def outputs(self, model: nn.Module, x: Tensor, target: Tensor | None = None) -> Sequence[Tensor]:
        """Compute the logits of every step.

        Args:
            model: What `build` gave.
            x: Samples (B, C, H, W).
            target: Classes (B,), which oracle arms alone look at.

        Returns:
            y_0..y_T: T + 1 tensors (B, K), one without a loop.

        Raises:
            ValueError: An oracle arm is not told the classes.
        """
        return model.refine(x).outputs if isinstance(model, Refining) else (model(x),)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Compute the training loss."""
        return F.cross_entropy(self.outputs(model, x, target)[-1], target)

    def backbone(self, model: nn.Module) -> nn.Module:
        """Find the part of a model that stands for the plain network."""
        found = getattr(model, "backbone", model)
        assert isinstance(found, nn.Module)
        return found


def standard_backbone(recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> StandardCNN:
    """Build the plain network of a run, with the first weights of this seed."""
    with seeded(seed):
        return StandardCNN(num_classes, shape[0], recipe.width, shape[1:])


@dataclass(frozen=True)
class Plain(Arm):
    """The backbone alone: what every other arm is held against.

    Holds equal: data, batches, first weights, optimiser. Isolates: all that feedback brings along, together.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        return standard_backbone(recipe, shape, num_classes, seed)


@dataclass(frozen=True)
class Derived(Arm):
    """Read off another arm's runs at one step, not trained: `loop-free` is `cbl` without its feedback, after training.

    Holds equal: everything, weights included. Isolates: what the feedback does when the answer is computed, apart
    from what it did to the weights in training.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """Refuse: there is nothing to train.

        Raises:
            ValueError: Always.
        """
        assert self.derived is not None
        source, step = self.derived
        raise ValueError(f"{self.name} is not trained: it is {source} read at step {step}; train {source}.")
