"""Deep supervision without feedback: auxiliary heads that are thrown away after training."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from torchcbl.lab.arms.base import Arm, Shape, standard_backbone
from torchcbl.lab.arms.loops import SITES
from torchcbl.lab.arms.seeds import derive_seed, seeded
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import Recipe


class AuxiliaryHeads(nn.Module):
    """A backbone with a linear classifier on the channel means of some blocks, for training alone.

    Args:
        backbone: The network.
        sites: Blocks that get a head, lowest first.
        num_classes: K.

    Example:
        >>> import torch
        >>> net = AuxiliaryHeads(StandardCNN(10, width=4), ("block1", "block2"), 10)
        >>> [y.shape for y in net.answers(torch.zeros(2, 3, 32, 32))]
        [torch.Size([2, 10]), torch.Size([2, 10]), torch.Size([2, 10])]
    """

    def __init__(self, backbone: StandardCNN, sites: tuple[str, ...], num_classes: int) -> None:
        super().__init__()
        self.backbone = backbone
        width = dict(zip(SITES, backbone.widths, strict=True))
        self.heads = nn.ModuleDict({site: nn.Linear(width[site], num_classes) for site in sites})

    def forward(self, x: Tensor) -> Tensor:
        """Compute the backbone's logits (B, K)."""
        y: Tensor = self.backbone(x)
        return y

    def answers(self, x: Tensor) -> list[Tensor]:
        """Compute the logits of the heads, lowest first, and of the backbone, each (B, K)."""
        answers, h = [], x
        for site in SITES:
            h = self.backbone.get_submodule(site)(h)
            if site in self.heads:
                answers.append(self.heads[site](h.mean((2, 3))))
        return [*answers, self.backbone.head(h)]


@dataclass(frozen=True)
class DeepSupervision(Arm):
    """The backbone trained through as many losses as `cbl`, but of auxiliary heads and not of steps.

    Holds equal: backbone; and number and equal weights of the losses where `cbl` has uniform ones and T is at most 3.
    Isolates: the feedback, from the training signal that a loss on every step brings.
    """

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        backbone = standard_backbone(recipe, shape, num_classes, seed)
        num_heads = min(recipe.steps, len(SITES))
        sites = SITES[:num_heads] if num_heads > 1 else SITES[1:2]
        with seeded(derive_seed(seed, self.name)):
            return AuxiliaryHeads(backbone, sites, num_classes)

    def loss(self, model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        """Compute the mean cross entropy of the heads and the output."""
        assert isinstance(model, AuxiliaryHeads)
        answers = model.answers(x)
        total = F.cross_entropy(answers[0], target)
        for y in answers[1:]:
            total = total + F.cross_entropy(y, target)
        return total / len(answers)
