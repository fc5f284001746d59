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


class Transformer(nn.Module):
    """Attention layers of torch's own, without dropout so that torch.fx can be trusted with them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 8)
        self.layer1, self.layer2 = (
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.embed(x))).mean(1))


class Recurrent(nn.Module):
    """A site that returns a tuple; the batch is on axis 1 inside."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 6)
        self.lstm = nn.LSTM(6, 8)
        self.gru = nn.GRU(8, 4, bidirectional=True)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h, (last, _) = self.lstm(self.embed(x).transpose(0, 1))
        return self.head(self.gru(h)[0].mean(0) + last[-1])


class Dense(nn.Module):
    """A U-Net with one output per pixel, in a dict, and skips that cross every cut."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1, stride=2)
        self.up = nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = F.relu(self.down1(x))
        up = F.interpolate(F.relu(self.up(F.relu(self.down2(first)))), scale_factor=2)
        return {"out": self.head(torch.cat([up, first], dim=1))}


class Tied(nn.Module):
    """One layer used twice under one name, and weights shared by two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.twice = nn.Linear(6, 8), nn.Linear(8, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.twice(torch.tanh(self.twice(self.embed(x)))))
        return self.head(torch.tanh(self.second(torch.tanh(self.first(h)))))


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
    "transformer": Case(Transformer, ("embed", "layer1"), (6, 5)),
    "lstm": Case(Recurrent, ("embed", "lstm"), (6, 5)),
    "dense": Case(Dense, ("down1", "down2"), (3, 8, 8)),
    "tied": Case(Tied, ("embed", "first"), (6,)),
    "positions": Case(Positions, ("embed", "norm"), (7, 5)),
}
