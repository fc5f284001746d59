"""The pair of the paper's released code, rebuilt from what is known of it, with its dropout on either side or both.

Known of it: three 3x3 convolutions (3-32, 32-64, pooling, 64-128, pooling), linear 8192-256 and 256-10; no batch norm;
dropout 0.5 in the baseline alone; z = Linear(10, 64) of the raw logits; adapters ReLU(Conv1x1([h, mean z])) at the
convolutions and ReLU(Linear([h, z])) at the first linear layer; the loss on y_T alone; schedule `literal`, under which
the three lower adapters cannot move the output. Not known, and chosen here: hidden states are taken after ReLU and
pooling, where they are smallest (no answer depends on it, for these adapters are dead, only the cost of a step), and
dropout stands before the last layer. Left out on purpose: the released code crops and flips the validation and test
images at random too; here all arms are scored on the images as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.adapters import Adapter
from torchcbl.backbone.site import Site
from torchcbl.lab.arms.base import Arm, Shape
from torchcbl.lab.arms.seeds import derive_seed, example_of, seeded
from torchcbl.lab.recipe import Recipe

RELEASED_SITES = ("conv1", "conv2", "conv3", "fc1")
DROPOUT = 0.5


class ReleasedCNN(nn.Module):
    """Classify images with three convolutions and two linear layers, without batch norm.

    Args:
        num_classes: K.
        channels: Channels of the images.
        width: Half the channels of the first convolution: 16 gives 32, 64 and 128.
        image_size: (H, W), each >= 4.
        dropout: Probability of dropping a unit of the first linear layer, in [0, 1).

    Example:
        >>> ReleasedCNN()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int = 10,
        channels: int = 3,
        width: int = 16,
        image_size: tuple[int, int] = (32, 32),
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, 2 * width)
        self.conv2 = _convolution(2 * width, 4 * width, pooled=True)
        self.conv3 = _convolution(4 * width, 8 * width, pooled=True)
        self.fc1 = nn.Sequential(nn.Linear(8 * width * (image_size[0] // 4) * (image_size[1] // 4), 256), nn.ReLU())
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(256, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, channels, H, W) to logits (B, K)."""
        x = x.contiguous(memory_format=torch.channels_last)  # the same values, convolved and pooled in less time
        h = self.conv3(self.conv2(self.conv1(x)))
        y: Tensor = self.fc2(self.dropout(self.fc1(h.flatten(1))))
        return y


class ScalarMeanConcat(Adapter):
    """Concatenate a feature map with one channel that holds the mean of z, or a vector with z, and map linearly.

        h' = ReLU(Conv1x1([h, mean z]))        h' = ReLU(W [h, z] + b)

    The extra channel is the same at each position, so its share is added to each sample: the map is not copied.

    Args:
        site: Where it stands.
        context_dim: D, the size of z.
    """

    def __init__(self, site: Site, context_dim: int) -> None:
        super().__init__(site, context_dim)
        c, flat = site.channels, len(site.shape) == 2
        self.linear = nn.Linear(c + context_dim, c) if flat else nn.Conv2d(c + 1, c, 1)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Refine h (B, C, H, W) or (B, C) by z (B, D)."""
        if h.ndim == 2:
            refined: Tensor = self.linear(torch.cat([h, z], dim=1))
            return refined.relu()
        weight, channels = self.linear.weight, self.site.channels
        share = z.mean(1)[:, None, None, None] * weight[None, :, channels]
        refined = nn.functional.conv2d(h, weight[:, :channels], self.linear.bias) + share
        return refined.relu()


@dataclass(frozen=True)
class Released(Arm):
    """One side of the released pair.

    `as-released-standard` has dropout and `as-released-cbl` has none: what they differ by is not the loop alone. With
    dropout in both, or in neither, it is. Holds equal, across the four: data, batches, first weights of the network,
    the loss on the last answer.

    Args:
        feedback: Whether the loop is there.
        dropout: Whether dropout is there.
    """

    feedback: bool = False
    dropout: bool = True

    def trains_first(self, recipe: Recipe) -> bool:
        """See `Arm.trains_first`: the loss is on y_T alone."""
        return not self.feedback

    def build(self, recipe: Recipe, shape: Shape, num_classes: int, seed: int) -> nn.Module:
        """See `Arm.build`."""
        with seeded(seed):
            rate = DROPOUT if self.dropout else 0.0
            backbone = ReleasedCNN(num_classes, shape[0], recipe.width, shape[1:], rate)
        if not self.feedback:
            return backbone
        with seeded(derive_seed(seed, "as-released-cbl")):
            return cbl.ContextLoop(
                backbone,
                sites=list(RELEASED_SITES),
                example=example_of(shape),
                adapter=ScalarMeanConcat,
                context=cbl.Context(dim=recipe.context_dim),
                steps=recipe.steps,
                alpha=recipe.alpha,
                schedule="literal",
                allow_dead=True,
            )


def _convolution(inputs: int, outputs: int, pooled: bool = False) -> nn.Sequential:
    """Convolve, pool, rectify: pooled before the ReLU or after it, the values are the same, and before is cheaper."""
    convolution = nn.Conv2d(inputs, outputs, 3, padding=1)
    return nn.Sequential(convolution, *([nn.MaxPool2d(2)] if pooled else []), nn.ReLU())
