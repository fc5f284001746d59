"""Which parameters of a loop are trained."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch import nn

from torchcbl.context import ContextMap

Self = TypeVar("Self", bound="Trainable")


class Trainable(nn.Module):
    """What a loop can say and decide about its parameters."""

    backbone: nn.Module
    adapters: nn.ModuleDict
    context: ContextMap
    backbone_frozen = False

    def adapter_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over what the loop adds to the backbone and trains: adapters and context."""
        yield from self.adapters.parameters()
        yield from self.context.parameters()

    def freeze_backbone(self: Self, frozen: bool = True) -> Self:
        """Train adapters and context alone, or, with `frozen=False`, everything again.

        A frozen backbone's parameters take no gradients and it stays in eval mode, whatever `net.train()` says: so its
        dropout is off, and no batch norm statistics change, those of later steps included. Training then leaves every
        tensor of it bit for bit as it was.

        Returns:
            The loop itself.
        """
        self.backbone_frozen = frozen
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(not frozen and parameter.is_floating_point())
        return self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """Set training mode; a frozen backbone stays in eval mode."""
        super().train(mode)
        if self.backbone_frozen:
            self.backbone.eval()
        return self

    def print_trainable_parameters(self) -> None:
        """Print how many parameters would be trained, of how many."""
        everything = list(self.parameters())
        trained = sum(parameter.numel() for parameter in everything if parameter.requires_grad)
        total = sum(parameter.numel() for parameter in everything)
        print(f"trainable parameters: {trained:,} of {total:,} ({trained / max(total, 1):.2%})")
