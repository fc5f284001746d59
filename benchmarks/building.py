"""What building a loop takes, as a multiple of one forward pass of the backbone on the same example.

    python benchmarks/building.py [--json results/benchmarks/building.json]

Building runs the backbone on the example several times: to find its sites, to see that it can be cut, with the same
outputs and gradients, and which adapters can move the output. Measured is the processor time of this process, median
and quartiles, after one build that is not counted (in a new process it also loads what torch counts FLOPs with).
Half a minute.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import record
import torchcbl as cbl
from overhead import Mlp, Recurrent, ViT
from torchcbl.lab.networks import StandardCNN


class Residual(nn.Module):
    """The basic block of a residual network."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after)
        self.conv2, self.bn2 = nn.Conv2d(after, after, 3, 1, 1, bias=False), nn.BatchNorm2d(after)
        self.short = nn.Conv2d(before, after, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x))))) + self.short(x))


class ResNet(nn.Module):
    """The layers of ResNet-18 for large images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        for index, (before, after) in enumerate(pairwise([64, 64, 128, 256, 512]), start=1):
            stage = nn.Sequential(Residual(before, after, min(index, 2)), Residual(after, after, 1))
            self.add_module(f"layer{index}", stage)
        self.fc = nn.Linear(512, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.pool(self.stem(x))))))
        return self.fc(x.mean((2, 3)))


Example = Callable[[], Tensor]
CASES: dict[str, tuple[Callable[[], nn.Module], list[str], Example]] = {
    "MLP": (Mlp, ["layer1", "layer2", "layer3"], lambda: torch.randn(2, 512)),
    "CNN": (lambda: StandardCNN(num_classes=10), ["block1", "block2", "block3"], lambda: torch.randn(2, 3, 32, 32)),
    "ViT": (ViT, ["blocks.0", "blocks.2"], lambda: torch.randn(2, 3, 32, 32)),
    "LSTM": (Recurrent, ["lower"], lambda: torch.randn(2, 32, 32)),
    "ResNet-18": (ResNet, ["layer2", "layer3", "layer4"], lambda: torch.randn(2, 3, 112, 112)),
}


def seconds(job: Callable[[], object], n: int) -> list[float]:
    """Processor seconds of each of n runs, after one that is not counted."""
    job()
    times = []
    for _ in range(n):
        begin = time.process_time()
        job()
        times.append(time.process_time() - begin)
    return times


def measure(name: str, cut: str, n: int) -> dict[str, object]:
    torch.manual_seed(0)
    make, sites, example = CASES[name]
    backbone, x = make().eval(), example()
    with torch.no_grad():
        forward = statistics.median(seconds(lambda: backbone(x), max(20, n)))
    times = seconds(lambda: cbl.ContextLoop(backbone, sites, x, cut=cut), n)
    row: dict[str, object] = {"network": name, "cut": cut, "input": list(x.shape), "sites": len(sites), "n": n}
    return row | {"forward": forward} | record.quartiles(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=7, help="n: builds of each (default 7)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="which (default: all)")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.cases:
        for cut in ("traced", "replayed"):
            row = measure(name, cut, arguments.runs)
            rows.append(row)
            ratio = float(str(row["seconds"])) / float(str(row["forward"]))
            print(f"{name:10} {cut:9} {row['seconds']:8.3f} s  {ratio:8.1f} forward passes", flush=True)
    if arguments.json:
        command = "python benchmarks/building.py --json results/benchmarks/building.json"
        record.write(arguments.json, command, "processor time of one thread", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
