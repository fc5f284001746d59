"""Small backbones of every kind the loop must cut, with the sites the checklist uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Block(nn.Module):
    """A residual block with batch norm, and a ReLU that writes in place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.conv2(self.relu(self.norm(self.conv1(x)))))


class ResidualCnn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.block1 = Block(6)
        self.block2 = Block(6)
        self.dropout = nn.Dropout(0.25)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block2(self.block1(self.stem(x)))
        return self.fc(self.dropout(h.mean((2, 3))))


class BranchingCnn(nn.Module):
    """Control flow on data, functional dropout that follows `self.training`, and a convolution called as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(5, 3, 3, 3) * 0.2)
        self.low = nn.Conv2d(5, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.high = nn.Conv2d(5, 5, 3, padding=1)
        self.fc = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.kernel, padding=1))
        if float(x.detach().sum()) < -1.0:  # what torch.fx cannot follow
            x = -x
        skip = x
        x = F.relu(self.norm(self.low(x)))
        x = F.dropout(x, 0.25, training=self.training)
        return self.fc((self.high(x) + skip).mean((2, 3)))


class SkipAcross(nn.Module):
    """A U-Net's shape: the lowest site feeds the head past all others; one site stands in a parallel branch."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(6, 8)
        self.left = nn.Linear(8, 8)
        self.right = nn.Linear(6, 8)
        self.up = nn.Linear(8, 8)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        down = torch.tanh(self.down(x))
        up = torch.tanh(self.up(torch.tanh(self.left(down)) + self.right(x)))
        return self.head(torch.cat([up, down], dim=1))


class Positions(nn.Module):
    """A sequence model with one output per position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.mix = nn.Linear(7, 7)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = self.norm(h + self.mix(h.transpose(1, 2)).transpose(1, 2))
        return self.head(torch.relu(h))


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(6 * 16, 4),
    )


@dataclass(frozen=True)
class Case:
    build: Callable[[], nn.Module]
    sites: tuple[str, ...]
    shape: tuple[int, ...]
    cut: str = "traced"

    def example(self, batch: int = 3) -> Tensor:
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(1))


CASES = {
    "mlp": Case(Mlp, ("first", "second"), (6,)),
    "residual": Case(ResidualCnn, ("stem", "block1", "block2"), (3, 8, 8)),
    "inside-a-block": Case(ResidualCnn, ("block1.norm", "block2.conv1"), (3, 8, 8)),
    "sequential": Case(sequential, ("1", "4"), (3, 8, 8)),
    "branching": Case(BranchingCnn, ("low", "high"), (3, 8, 8), cut="replayed"),
    "skip-across": Case(SkipAcross, ("down", "right", "up"), (6,)),
    "positions": Case(Positions, ("embed", "norm"), (7, 5)),
}
