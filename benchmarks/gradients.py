"""How far each gradient rule is from the gradient of the fixed point, and what it costs.

    python benchmarks/gradients.py [--json results/benchmarks/gradients.json]

A CNN with one additive adapter in float64, its context scaled so that the slowest sample's asymptotic rate rho is 0.5
or 0.9. Every rule starts from the same fixed point (found to 1e-12), but for `bptt`, which is T plain steps from y_0.
The exact gradient of a cross entropy, by all parameters together, is that of `Implicit(adjoint="exact")`; the bias is
||g - g_exact|| / ||g_exact||. Half a minute.
"""

from __future__ import annotations

import argparse
import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import record
import torchcbl as cbl
from torchcbl.gradients import Bptt, Gradient, Implicit, Phantom, Truncated
from torchcbl.halting import Never
from torchcbl.lab.networks import StandardCNN
from torchcbl.solvers import Picard, Solver

BATCH = 16
RATES = (0.5, 0.9)
CASES: list[tuple[Gradient, int]] = [
    *((Bptt(), steps) for steps in (2, 5, 10, 30, 100)),
    *((Truncated(steps=k), 300) for k in (1, 2, 5, 10, 30)),
    *((Phantom(steps=k, damping=d), 300) for d in (0.0, 0.5) for k in (1, 5, 10, 30)),
    *((Implicit(adjoint="anderson", tolerance=tolerance), 300) for tolerance in (1e-1, 1e-2, 1e-4)),
    (Implicit(adjoint="exact"), 300),
]


def loop(rate: float) -> tuple[cbl.ContextLoop, Tensor, Tensor]:
    """A loop whose slowest sample has the given asymptotic rate."""
    torch.manual_seed(0)
    x, target = torch.randn(BATCH, 3, 32, 32).double(), torch.arange(BATCH) % 10
    backbone = StandardCNN(width=8).double()
    net = cbl.ContextLoop(backbone, "block3", x, "additive", cbl.Context(dim=16), step_norm="frozen").eval()
    nn.init.normal_(net.adapters["block3"].up.weight, std=0.3)  # type: ignore[union-attr,arg-type]
    weight, low, high = net.context.map.weight.detach().clone(), 0.0, 64.0  # type: ignore[union-attr,operator]
    for _ in range(40):
        middle = (low + high) / 2
        with torch.no_grad():
            net.context.map.weight.copy_(middle * weight)  # type: ignore[union-attr,operator]
        found = cbl.contraction(net, x, steps=1).asymptotic_rate
        low, high = (middle, high) if bool((found < rate).all()) else (low, middle)
    return net, x, target


def gradient(net: cbl.ContextLoop, x: Tensor, target: Tensor, rule: Gradient, steps: int) -> tuple[Tensor, float]:
    """Return the gradient by all parameters, and the evaluations per sample of the forward pass."""
    unrolled = isinstance(rule, Bptt)
    solver: str | Solver = Picard() if unrolled or isinstance(rule, Truncated) else "newton"
    halting = Never() if unrolled else cbl.Tolerance(1e-12)
    r = net.refine(x, steps=steps, solver=solver, gradient=rule, halting=halting)
    parameters = list(net.parameters())
    found = torch.autograd.grad(F.cross_entropy(r.output, target), parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([g.flatten() for g in flat]), float(r.evaluations.double().mean())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for rate in RATES:
        net, x, target = loop(rate)
        exact, _ = gradient(net, x, target, Implicit(adjoint="exact"), 300)
        for rule, steps in CASES:
            found, evaluations = gradient(net, x, target, rule, steps)
            bias = float((found - exact).norm() / exact.norm())
            cosine = float(F.cosine_similarity(found, exact, dim=0))
            differentiated = steps if isinstance(rule, Bptt) else getattr(rule, "steps", 1)
            differentiated = 1 if isinstance(rule, Implicit) else differentiated
            rows.append(
                {
                    "rate": rate,
                    "rule": f"Bptt(), T = {steps}" if isinstance(rule, Bptt) else repr(rule),
                    "bias": bias,
                    "cosine": cosine,
                    "differentiated_steps": differentiated,
                    "evaluations": evaluations,
                    "n": BATCH,
                }
            )
            print(f"rho {rate}  {rows[-1]['rule']:70} bias {bias:8.1e}  cosine {cosine:8.5f}  steps {differentiated}")
    if arguments.json:
        method = "relative distance from the exact implicit gradient by all parameters, float64, one batch"
        record.write(
            arguments.json, "python benchmarks/gradients.py --json results/benchmarks/gradients.json", method, rows
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
