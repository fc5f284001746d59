"""What the loop adds on top of torch: time of refine and of a training step against the same loop written by hand.

    python benchmarks/overhead.py [--pairs 30] [--json FILE]

Both sides compute the same numbers (checked first). They run in turn, A B B A A B ..., so that a drift of the
machine's speed falls on both; the ratio is taken pair by pair. Measured is the processor time of this process, which
on one thread is what it would take on an idle machine. Printed: the median ratio with its quartiles, and milliseconds;
last, what importing costs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.lab.networks import StandardCNN

ByHand = Callable[[cbl.ContextLoop, Tensor, int], list[Tensor]]
NETWORKS = ["MLP", "CNN", "ViT", "LSTM", "MLP, replayed", "CNN, replayed", "ViT, replayed", "LSTM, replayed"]


class Mlp(nn.Module):
    def __init__(self, width: int = 512) -> None:
        super().__init__()
        self.layer1, self.layer2, self.layer3 = (nn.Linear(width, width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.layer1(x))
        x = torch.relu(self.layer2(x))
        return self.head(torch.relu(self.layer3(x)))


def film(linear: nn.Linear, h: Tensor, z: Tensor) -> Tensor:
    shape = (-1, h.shape[1]) + (1,) * (h.ndim - 2)
    gamma, beta = linear(z).chunk(2, dim=-1)
    return torch.addcmul(beta.view(shape), h, 1 + gamma.view(shape))


def mlp_by_hand(net: cbl.ContextLoop, x: Tensor, steps: int) -> list[Tensor]:
    b: Mlp = net.backbone
    adapters = [adapter.linear for adapter in net.adapters.values()]
    g = net.context.map
    h1 = b.layer1(x)
    y = b.head(torch.relu(b.layer3(torch.relu(b.layer2(torch.relu(h1))))))
    outputs = [y]
    for _ in range(steps):
        z = g(y)
        h = film(adapters[0], h1, z)
        h = film(adapters[1], b.layer2(torch.relu(h)), z)
        h = film(adapters[2], b.layer3(torch.relu(h)), z)
        y = b.head(torch.relu(h))
        outputs.append(y)
    return outputs


def cnn_by_hand(net: cbl.ContextLoop, x: Tensor, steps: int) -> list[Tensor]:
    b: StandardCNN = net.backbone
    adapters = [adapter.linear for adapter in net.adapters.values()]
    statistics_of = net.step_norm.statistics
    g = net.context.map

    def block(name: str, h: Tensor, step: int) -> Tensor:
        for key, layer in getattr(b, name).named_children():
            if not isinstance(layer, nn.BatchNorm2d):
                h = layer(h)
                continue
            kept = statistics_of[f"{name}/{key}"]
            row = min(step, len(kept.running_mean)) - 1
            if layer.training:
                kept.num_batches_tracked[row] += 1
            mean, var = kept.running_mean[row], kept.running_var[row]
            h = F.batch_norm(h, mean, var, layer.weight, layer.bias, layer.training, layer.momentum, layer.eps)
        return h

    def head(h: Tensor) -> Tensor:
        return b.fc2(torch.relu(b.fc1(h.flatten(1))))

    h1 = b.block1(x)
    y = head(b.block3(b.block2(h1)))
    outputs = [y]
    for step in range(1, steps + 1):
        z = g(y)
        h = film(adapters[0], h1, z)
        h = film(adapters[1], block("block2", h, step), z)
        h = film(adapters[2], block("block3", h, step), z)
        y = head(h)
        outputs.append(y)
    return outputs


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ViT(nn.Module):
    """A small vision transformer: 4 x 4 patches of 32 x 32 images."""

    def __init__(self, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Recurrent(nn.Module):
    """Two LSTMs; the first returns its outputs and states."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.lower, self.upper = nn.LSTM(32, width, batch_first=True), nn.LSTM(width, width, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.upper(self.lower(x)[0])[0][:, -1])


def film_last(linear: nn.Linear, h: Tensor, z: Tensor) -> Tensor:
    gamma, beta = linear(z)[:, None].chunk(2, dim=-1)
    return torch.addcmul(beta, h, 1 + gamma)


def vit_by_hand(net: cbl.ContextLoop, x: Tensor, steps: int) -> list[Tensor]:
    b: ViT = net.backbone
    adapters = [adapter.linear for adapter in net.adapters.values()]
    first = b.blocks[0](b.patches(x).flatten(2).transpose(1, 2))
    h = first
    for block in b.blocks[1:]:
        h = block(h)
    outputs = [b.head(b.norm(h).mean(1))]
    for _ in range(steps):
        z = net.context.map(outputs[-1])
        h = b.blocks[1](film_last(adapters[0], first, z))
        h = film_last(adapters[1], b.blocks[2](h), z)
        outputs.append(b.head(b.norm(b.blocks[3](h)).mean(1)))
    return outputs


def lstm_by_hand(net: cbl.ContextLoop, x: Tensor, steps: int) -> list[Tensor]:
    b: Recurrent = net.backbone
    (adapter,) = (adapter.linear for adapter in net.adapters.values())
    h = b.lower(x)[0]
    outputs = [b.head(b.upper(h)[0][:, -1])]
    for _ in range(steps):
        new = film_last(adapter, h, net.context.map(outputs[-1]))
        outputs.append(b.head(b.upper(new)[0][:, -1]))
    return outputs


def build(name: str) -> tuple[cbl.ContextLoop, ByHand, Tensor]:
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32)
    network, _, replayed = name.partition(", ")
    cases: dict[str, tuple[nn.Module, list[str], ByHand, Tensor]] = {
        "MLP": (Mlp(), ["layer1", "layer2", "layer3"], mlp_by_hand, torch.randn(128, 512)),
        "CNN": (StandardCNN(num_classes=10), ["block1", "block2", "block3"], cnn_by_hand, images.repeat(4, 1, 1, 1)),
        "ViT": (ViT(), ["blocks.0", "blocks.2"], vit_by_hand, images),
        "LSTM": (Recurrent(), ["lower"], lstm_by_hand, torch.randn(64, 32, 32)),
    }
    backbone, sites, by_hand, x = cases[network]
    net = cbl.ContextLoop(backbone, sites, x[:2], steps=8, cut=replayed or "traced")
    return net, by_hand, x


def train_step(outputs: list[Tensor], target: Tensor, net: nn.Module) -> None:
    net.zero_grad()
    losses = [F.cross_entropy(y, target) / len(outputs) for y in outputs]
    torch.stack(losses).sum().backward()


def measure(ours: Callable[[], object], by_hand: Callable[[], object], pairs: int) -> dict[str, float]:
    for _ in range(3):
        ours(), by_hand()
    times: list[tuple[float, float]] = []
    for pair in range(pairs):
        order = (ours, by_hand) if pair % 2 == 0 else (by_hand, ours)
        seconds = []
        for side in order:
            begin = time.process_time()
            side()
            seconds.append(time.process_time() - begin)
        times.append((seconds[0], seconds[1]) if pair % 2 == 0 else (seconds[1], seconds[0]))
    ratios = [a / b for a, b in times]
    low, median, high = statistics.quantiles(ratios, n=4)
    return {
        "ratio": median,
        "quartile_low": low,
        "quartile_high": high,
        "ours_ms": 1e3 * statistics.median(a for a, _ in times),
        "by_hand_ms": 1e3 * statistics.median(b for _, b in times),
    }


def run_case(name: str, steps: int, what: str, pairs: int) -> dict[str, float]:
    net, by_hand, x = build(name)
    target = torch.arange(len(x)) % 10
    if what == "train":
        net.train()
        return measure(
            lambda: train_step(list(net.refine(x, steps=steps).outputs), target, net),
            lambda: train_step(by_hand(net, x, steps), target, net),
            pairs,
        )
    net.train()
    net(x)  # per-step statistics are in use from now on
    net.eval()
    with torch.no_grad():
        for ours, theirs in zip(net.refine(x, steps=steps).outputs, by_hand(net, x, steps), strict=True):
            torch.testing.assert_close(ours, theirs)
        return measure(lambda: net.refine(x, steps=steps), lambda: by_hand(net, x, steps), pairs)


def import_seconds(statement: str) -> float:
    """Median wall-clock time of a statement in fresh interpreters."""
    code = f"import time; begin = time.perf_counter(); {statement}; print(time.perf_counter() - begin)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(7)]
    return statistics.median(float(run.stdout) for run in runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30, help="timed pairs per row (default 30)")
    parser.add_argument("--networks", nargs="+", default=NETWORKS, choices=NETWORKS, help="which ones (default: all)")
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 2, 8], help="T (default: 0 2 8)")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, 1 thread, float32")
    print(f"{'':16}{'':8}{'T':>3}  {'ratio':>6}  {'quartiles':>15}  {'ours':>9}  {'by hand':>9}")
    rows = []
    for name in arguments.networks:
        for what in ("refine", "train"):
            for steps in arguments.steps:
                row = run_case(name, steps, what, arguments.pairs)
                rows.append({"network": name, "what": what, "steps": steps, "pairs": arguments.pairs, **row})
                spread = f"{row['quartile_low']:.3f} to {row['quartile_high']:.3f}"
                times = f"{row['ours_ms']:7.2f}ms  {row['by_hand_ms']:7.2f}ms"
                print(f"{name:16}{what:8}{steps:>3}  {row['ratio']:6.3f}  {spread:>15}  {times}", flush=True)
    torch_alone, all_names = import_seconds("import torch"), import_seconds("import torch; from torchcbl import *")
    print(f"import: torch {torch_alone:.2f} s, every name of torchcbl adds {all_names - torch_alone:.3f} s")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as stream:
            json.dump({"torch": torch.__version__, "machine": platform.machine(), "rows": rows}, stream, indent=1)


if __name__ == "__main__":
    main()
