"""Write the cost tables of docs/adapters.md: formulas, and what `net.audit()` measures on two small networks.

    python docs/adapter_costs.py           # write
    python docs/adapter_costs.py --check   # change nothing; exit with 1 if the tables are out of date

The two must agree: a formula that gives another number than the measurement is an error.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import torchcbl as cbl
from torchcbl.adapters import ADAPTERS, AdapterChoice
from torchcbl.files import write_atomically

PAGE = Path(__file__).parent / "adapters.md"
R, M, E, D = 8, 4, 32, 64
"""The defaults of rank, tokens and width, and the context's dim."""


@dataclass(frozen=True)
class Place:
    """A site: C channels, N positions, and how many attention layers follow it."""

    C: int
    N: int
    layers: int


Make = Callable[[], tuple[nn.Module, Tensor, Place]]
"""Builds a network, an example, and tells what its site is like."""


@dataclass(frozen=True)
class Cost:
    """A formula for people, and the same for the computer: parameters, and multiply-adds per sample and step."""

    parameters: str
    multiply_adds: str
    count: Callable[[Place], tuple[int, int]]


COSTS = {
    "film": Cost("2C(D + 1)", "2CDP", lambda s: (2 * s.C * (D + 1), 2 * s.C * D)),
    "gate": Cost("C(D + 1)", "CDP", lambda s: (s.C * (D + 1), s.C * D)),
    "additive": Cost("r(D + C) + C", "r(D + C)P", lambda s: (R * (D + s.C) + s.C, R * (D + s.C))),
    "concat": Cost("C(C + D + 1)", "C²N + CDP", lambda s: (s.C * (s.C + D + 1), s.C**2 * s.N + s.C * D)),
    "attention": Cost(
        "MD(D + 1) + E(2C + 2D + 3) + C",
        "2CEN + 2ENPM + MD(D + 2E)P",
        lambda s: (
            M * D * (D + 1) + E * (2 * s.C + 2 * D + 3) + s.C,
            2 * s.C * E * s.N + 2 * E * s.N * M + M * D * (D + 2 * E),
        ),
    ),
    "token": Cost(
        "2MC(D + 1) + C",
        "2MCDP, and 2CNPM in each attention layer",
        lambda s: (2 * M * s.C * (D + 1) + s.C, 2 * M * s.C * D + 2 * s.C * s.N * M * s.layers),
    ),
    "recurrent": Cost(
        "3C(C + D + 1) + C",
        "3C²N + 3CDP",
        lambda s: (3 * s.C * (s.C + D + 1) + s.C, 3 * s.C**2 * s.N + 3 * s.C * D),
    ),
}


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Attend, then think."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        x = x + self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        thought: Tensor = self.mlp(self.norms[1](x))
        return x + thought


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """Average (B, N, C) to (B, C)."""
        return x.mean(1)


class Same(nn.Module):
    """An adapter that does nothing, so that what is left is the loop's own cost."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        """Return h."""
        return h


def make_cnn() -> tuple[nn.Module, Tensor, Place]:
    """A site of 64 channels on 16 x 16, in a small CNN."""
    convs = [nn.Conv2d(3, 64, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU()]
    backbone = nn.Sequential(*convs, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))
    return backbone, torch.randn(2, 3, 32, 32), Place(C=64, N=256, layers=0)


def make_vit() -> tuple[nn.Module, Tensor, Place]:
    """A site of 64 tokens of width 192 (ViT-Tiny's), with two of three blocks after it."""
    backbone = nn.Sequential(nn.Linear(48, 192), *(Block(192, heads=3) for _ in range(3)), Mean(), nn.Linear(192, 10))
    return backbone, torch.randn(2, 64, 48), Place(C=192, N=64, layers=2)


def audit(make: Make, adapter: AdapterChoice) -> cbl.Audit:
    """Build a loop with one site, the module at index 1, and audit it.

    Attention runs as plain products: torch's FLOP counter leaves out the fused kernel of a CPU.
    """
    torch.manual_seed(0)
    backbone, x, _ = make()
    with sdpa_kernel(SDPBackend.MATH):
        return cbl.ContextLoop(backbone, "1", x, adapter=adapter, context=cbl.Context(dim=D), allow_dead=True).audit()


@functools.cache
def without_adapter(make: Make) -> cbl.Audit:
    """Audit the loop alone."""
    return audit(make, lambda site, dim: Same())


def measure(name: str, make: Make) -> str:
    """Return the cells of one adapter on one network.

    Raises:
        RuntimeError: A formula says otherwise.
    """
    found, bare, place = audit(make, ADAPTERS[name]), without_adapter(make), make()[2]
    if found.dead:
        return "dead | dead | dead"
    own = round(found.flops_step - bare.flops_step)
    parameters, multiply_adds = COSTS[name].count(place)
    if (found.adapters[0].parameters, own) != (parameters, 2 * multiply_adds):
        raise RuntimeError(
            f"{name}: measured {found.adapters[0].parameters} parameters and {own} FLOPs, but the formulas say "
            f"{parameters} and {2 * multiply_adds}: correct COSTS in {Path(__file__).name}."
        )
    return f"{parameters:,} | {found.flops_step / 1e6:.3f} | {own / 1e6:.3f}"


def formulas() -> str:
    """Write the formulas as a table."""
    rows = [f"| `{name}` | {cost.parameters} | {cost.multiply_adds} |" for name, cost in COSTS.items()]
    return "\n".join(["| adapter | parameters | multiply-adds per sample and step |", "|---|---|---|", *rows])


def measured() -> str:
    """Write what was measured as a table."""
    head = "| adapter |" + "".join(
        f" {net}: parameters | MFLOPs per step | the adapter's own |" for net in ("CNN", "ViT")
    )
    rows = [f"| `{name}` | {measure(name, make_cnn)} | {measure(name, make_vit)} |" for name in COSTS]
    bare = [f"0 | {without_adapter(make).flops_step / 1e6:.3f} | 0" for make in (make_cnn, make_vit)]
    return "\n".join([head, "|---" + "|--:" * 6 + "|", f"| (none) | {bare[0]} | {bare[1]} |", *rows])


def filled(text: str) -> str:
    """Return the page with both tables as they are now."""
    for name, table in (("formulas", formulas()), ("measured", measured())):
        block = f"<!-- costs:{name} -->\n\n{table}\n\n<!-- /costs:{name} -->"
        parts = re.split(rf"<!-- costs:{name} -->.*?<!-- /costs:{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{PAGE.name} has {len(parts) - 1} places marked costs:{name}, expected one.")
        text = block.join(parts)
    return text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if not check:
        write_atomically(PAGE, new)
    return int(check and old != new)


if __name__ == "__main__":
    sys.exit(main())
