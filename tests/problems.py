"""Fixed-point problems with a known answer: s* and its gradient in closed form, float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.fixed_point import fixed_point
from torchcbl.gradients import Gradient
from torchcbl.halting import Halting, Tolerance
from torchcbl.solvers import Evaluation, FunctionMap, Picard, Solver, Trace

TIGHT = Tolerance(1e-13)
DOTTIE = 0.7390851332151606416553  # cos(s) = s


@dataclass(frozen=True)
class Known:
    """s = f(s, *theta) with a known s*.

    Args:
        f: The map, (B, N) to (B, N).
        start: s_0, (B, N).
        theta: What s* is differentiated by, the batch first.
        exact: s*(theta), (B, N), differentiable.
        damping: A weight of the old state with which Picard's iteration converges; None where it never does.
    """

    f: Callable[..., Tensor]
    start: Tensor
    theta: tuple[Tensor, ...]
    exact: Callable[..., Tensor]
    damping: float | None = 0.0

    def leaves(self) -> list[Tensor]:
        """Return theta as leaves that want a gradient."""
        return [value.clone().requires_grad_() for value in self.theta]

    def answer(self) -> Tensor:
        """Return s*."""
        return self.exact(*self.theta)

    def gradients(self, weights: Tensor) -> list[Tensor]:
        """Return d(sum(weights s*))/d theta, of the closed form."""
        theta = self.leaves()
        return list(torch.autograd.grad((weights * self.exact(*theta)).sum(), theta))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def affine(matrices: Tensor, damping: float | None = 0.0) -> Known:
    """s = A s + b: s* = (I - A)^{-1} b, for A (B, N, N)."""

    def f(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (a @ s[:, :, None])[:, :, 0] + b

    def exact(a: Tensor, b: Tensor) -> Tensor:
        return torch.linalg.solve(torch.eye(b.shape[1], dtype=b.dtype) - a, b)

    batch, size, _ = matrices.shape
    return Known(
        f, torch.zeros(batch, size, dtype=torch.float64), (matrices, random(batch, size, seed=1)), exact, damping
    )


def symmetric(rates: tuple[float, ...] = (0.8, 0.8, 0.3), size: int = 4) -> Known:
    """Eigenvalues between -rate and rate, so that gamma is the rate itself."""
    bases = torch.linalg.qr(random(len(rates), size, size))[0]
    values = torch.stack([torch.linspace(-rate / 2, rate, size, dtype=torch.float64) for rate in rates])
    return affine(bases @ (values[:, :, None] * bases.mT))


def non_normal() -> Known:
    """Spectral radius 0.5 and norm over 3: it grows before it shrinks."""
    matrix = torch.tensor([[0.5, 3.0, 0.0], [0.0, 0.5, 3.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
    return affine(torch.stack([matrix, matrix.mT]))


def rotation(radius: float = 1.05) -> Known:
    """A turn by 90 degrees that grows: damped by 1/2 it contracts."""
    turn = torch.tensor([[0.0, -radius], [radius, 0.0]], dtype=torch.float64)
    return affine(torch.stack([turn, turn.mT]), damping=0.5)


def expanding() -> Known:
    """Eigenvalues 3, -4 and 0.5: no damping makes it contract."""
    bases = torch.linalg.qr(random(2, 3, 3))[0]
    return affine(bases @ torch.diag(torch.tensor([3.0, -4.0, 0.5], dtype=torch.float64)) @ bases.mT, damping=None)


def cosine() -> Known:
    """s = a cos(s) at a = 1, the Dottie number, by the implicit function theorem to first order in a."""

    def exact(a: Tensor) -> Tensor:
        s = torch.full_like(a, DOTTIE).detach()
        return s + (a * s.cos() - s) / (1 + s.sin())

    return Known(lambda s, a: a * s.cos(), torch.zeros(2, 1, dtype=torch.float64), (torch.ones(2, 1).double(),), exact)


def kepler() -> Known:
    """E = M + e sin E, at four eccentricities: dE/dM = 1 / (1 - e cos E), dE/de = sin E / (1 - e cos E)."""
    e = torch.tensor([[0.1], [0.4], [0.7], [0.9]], dtype=torch.float64)
    eccentric = torch.tensor([[0.5], [1.5], [2.5], [1.0]], dtype=torch.float64)
    mean = eccentric - e * eccentric.sin()

    def exact(mean: Tensor, e: Tensor) -> Tensor:
        return eccentric + (mean + e * eccentric.sin() - eccentric) / (1 - e.detach() * eccentric.cos())

    return Known(lambda s, mean, e: mean + e * s.sin(), mean.clone(), (mean, e), exact)


def square_root() -> Known:
    """The Babylonian map s -> (s + a / s) / 2: s* = sqrt(a), ds*/da = 1 / (2 sqrt(a)), and J = 0 there."""
    a = torch.tensor([[2.0], [9.0], [1e-4], [1e6]], dtype=torch.float64)
    return Known(lambda s, a: (s + a / s) / 2, torch.ones_like(a), (a,), lambda a: a.sqrt())


def tanh_network() -> Known:
    """s = tanh(W s + b) with b chosen for a given s*."""
    wanted, weight = 0.5 * random(3, 4, seed=2).tanh(), 0.4 * random(3, 4, 4, seed=3)
    bias = wanted.atanh() - (weight @ wanted[:, :, None])[:, :, 0]

    def f(s: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh((w @ s[:, :, None])[:, :, 0] + b)

    def exact(w: Tensor, b: Tensor) -> Tensor:
        jacobian = (1 - wanted**2)[:, :, None] * weight
        return wanted + torch.linalg.solve(torch.eye(4).double() - jacobian, f(wanted, w, b) - wanted)

    return Known(f, torch.zeros_like(wanted), (weight, bias), exact)


def mixed() -> Known:
    """s = a s + b, easy and hard in one batch: s* = b / (1 - a)."""
    a = torch.tensor([[0.0], [0.1], [0.5], [0.9], [0.99], [-0.9]], dtype=torch.float64)
    b = random(6, 1, seed=4)
    return Known(lambda s, a, b: a * s + b, torch.zeros_like(b), (a, b), lambda a, b: b / (1 - a))


PROBLEMS = {
    build.__name__: build
    for build in (symmetric, non_normal, rotation, expanding, cosine, kepler, square_root, tanh_network, mixed)
}


def countdown(s: Tensor) -> Tensor:
    """s -> max(s - 1, 0): from a whole number k it stands still at evaluation k + 1, to the last bit."""
    return (s - 1).clamp(min=0)


class Counting(FunctionMap):
    """A map that notes which samples are evaluated; `tally` (B,) says how often."""

    def __init__(self, function: Callable[..., Tensor], start: Tensor, args: tuple[object, ...] = ()) -> None:
        super().__init__(function, start.shape, args)
        self.present = torch.arange(len(start))
        self.tally = torch.zeros(len(start), dtype=torch.long)

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        self.tally.index_add_(0, self.present, torch.ones_like(self.present))
        return super().__call__(s, step)

    def select(self, index: Tensor) -> Counting:
        part = Counting(self.function, torch.empty(len(index), *self.sizes), super().select(index).args)
        part.present, part.tally = self.present[index], self.tally
        return part


def run(
    known: Known,
    rule: Gradient,
    solver: Solver,
    theta: list[Tensor],
    halting: Halting | None = TIGHT,
    steps: int = 3000,
) -> Trace:
    return fixed_point(known.f, known.start, theta, solver=solver, gradient=rule, halting=halting, steps=steps)


def gradients(known: Known, rule: Gradient, solver: Solver, **options: object) -> list[Tensor]:
    theta = known.leaves()
    output = run(known, rule, solver, theta, **options).output  # type: ignore[arg-type]
    return list(torch.autograd.grad((output * weights(known)).sum(), theta))


def weights(known: Known) -> Tensor:
    return random(*known.start.shape, seed=9)


def picard(known: Known) -> Picard:
    return Picard(known.damping or 0.0)
