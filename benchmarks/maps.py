"""Maps whose batches are easy and hard at once, solved by torchcbl or by torchdeq: what `solvers.py` measures."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import torchdeq
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.backbone.calls import Call
from torchcbl.fixed_point import fixed_point
from torchcbl.gradients import Implicit
from torchcbl.halting import Tolerance
from torchcbl.lab.networks import StandardCNN
from torchcbl.solvers import Newton, Solver

Function = Callable[..., Tensor]
Options = dict[str, object]
STEPS = 200
"""At most so many evaluations per sample, for everyone."""


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Case(ABC):
    """A fixed-point problem s = G(s) over a batch.

    Args:
        name: What it is called in the tables.
        tolerance: The relative residual that every sample is to reach.
    """

    name: str
    tolerance: float
    rows = 0
    """How many samples were evaluated: torchdeq's as the map sees them, ours as the trace has them, which is the same
    and knows Newton's products with the Jacobian too."""

    @abstractmethod
    def leaves(self) -> list[Tensor]:
        """Return what the answer is differentiated by."""

    @abstractmethod
    def ours(self, solver: Solver, tolerance: float, steps: int, differentiate: bool) -> Tensor:
        """Return torchcbl's answer, (B, N)."""

    @abstractmethod
    def theirs(self, options: Options, solver_options: Options, differentiate: bool) -> Tensor:
        """Return torchdeq's answer, (B, N)."""

    @abstractmethod
    def residual(self, answer: Tensor) -> Tensor:
        """Return ||G(s) - s|| / ||G(s)|| of an answer, (B,)."""

    @abstractmethod
    def exactly(self) -> Case:
        """Return the same in float64."""

    def gradients(self, answer: Tensor) -> list[Tensor]:
        """Return the gradients of a fixed weighting of the answer, and leave none behind."""
        weights = randn(*answer.shape, seed=9).to(answer.dtype)
        return list(torch.autograd.grad((weights * answer).sum(), self.leaves()))

    def truth(self) -> tuple[Tensor, list[Tensor]]:
        """Return the fixed point and its gradients in float64, to 12 digits."""
        exact = self.exactly()
        answer = exact.ours(exact.reference(), 1e-13, 5000, differentiate=True)
        return answer.detach(), exact.gradients(answer)

    def reference(self) -> Solver:
        return cbl.solvers.Anderson(memory=40)


def run_deq(function: Function, start: object, options: Options, more: Options, train: bool) -> object:
    """Run torchdeq as its users do; `options` are those of `get_deq`, `more` those of the forward solver."""
    deq = torchdeq.get_deq(**{"ift": True, **options}).train(train)
    with torch.set_grad_enabled(train):
        outputs, _ = deq(function, start, solver_kwargs=more)
    return outputs[-1]


class FunctionCase(Case):
    """G given by f(s, *args); the args have the batch first and are what is differentiated by."""

    adjoint: str | Solver = "auto"

    def __init__(self, name: str, function: Function, start: Tensor, args: Sequence[Tensor], tolerance: float) -> None:
        self.name, self.function, self.start, self.tolerance = name, function, start, tolerance
        self.args = [value.detach().requires_grad_() for value in args]

    def leaves(self) -> list[Tensor]:
        return self.args

    def evaluate(self, s: Tensor, *args: Tensor) -> Tensor:
        self.rows += len(s)
        return self.function(s, *args)

    def ours(self, solver: Solver, tolerance: float, steps: int, differentiate: bool) -> Tensor:
        rule = Implicit(adjoint=self.adjoint, tolerance=self.tolerance, steps=steps)
        with torch.set_grad_enabled(differentiate):
            options = {"solver": solver, "gradient": rule, "halting": Tolerance(tolerance), "steps": steps}
            trace = fixed_point(self.function, self.start, self.args, **options)
        self.rows += int(trace.evaluations.sum())
        return trace.output.flatten(1)

    def theirs(self, options: Options, solver_options: Options, differentiate: bool) -> Tensor:
        found = run_deq(lambda s: self.evaluate(s, *self.args), self.start, options, solver_options, differentiate)
        assert isinstance(found, Tensor)
        return found.flatten(1)

    def residual(self, answer: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.function(answer.reshape(self.start.shape), *self.args).flatten(1)
            return (value - answer).norm(dim=1) / value.norm(dim=1)

    def exactly(self) -> FunctionCase:
        args = [value.detach().double() for value in self.args]
        case = FunctionCase(self.name, self.function, self.start.double(), args, 1e-12)
        case.adjoint = self.reference()
        return case


def affine(batch: int = 128, size: int = 64) -> Case:
    """s = A s + b with symmetric A, eigenvalues from -rate/2 to rate, rates from 0.1 to 0.99 (condition 2 to 150)."""
    rates = 1 - torch.logspace(-0.05, -2, batch, dtype=torch.float64)
    bases = torch.linalg.qr(randn(batch, size, size, seed=0))[0]
    values = rates[:, None] * torch.linspace(-0.5, 1, size, dtype=torch.float64)
    matrices = (bases * values[:, None]) @ bases.mT
    start = torch.zeros(batch, size, dtype=torch.float64)
    args = [matrices, randn(batch, size, seed=1)]
    return FunctionCase(f"affine, N = {size}", lambda s, a, b: (a @ s[:, :, None])[:, :, 0] + b, start, args, 1e-8)


def tanh(batch: int = 128, size: int = 64) -> Case:
    """s = tanh(gain W s + x), W normal of spectral radius about 1, gains from 0.1 to 1.1."""
    weight = randn(size, size, seed=2) / size**0.5
    gains = torch.linspace(0.1, 1.1, batch)[:, None]

    def function(s: Tensor, gain: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(gain * (s @ weight.to(s.dtype).T) + x)

    start = torch.zeros(batch, size)
    return FunctionCase(f"tanh, N = {size}", function, start, [gains, 0.3 * randn(batch, size, seed=3).float()], 1e-5)


def convolution(batch: int = 16, channels: int = 16, size: int = 16) -> Case:
    """The same with a 3 x 3 convolution in the place of W, and gains up to 0.95."""
    weight = randn(channels, channels, 3, 3, seed=4) / (9 * channels) ** 0.5
    gains = torch.linspace(0.1, 0.95, batch)[:, None, None, None]

    def function(s: Tensor, gain: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(gain * F.conv2d(s, weight.to(s.dtype), padding=1) + x)

    start = torch.zeros(batch, channels, size, size)
    args = [gains, 0.3 * randn(*start.shape, seed=5).float()]
    return FunctionCase(f"tanh of a convolution, N = {channels * size * size}", function, start, args, 1e-5)


class LoopCase(Case):
    """A CNN with feedback at three sites: solved in the space of the context, or by torchdeq in that of the features.

    Args:
        features: Whether torchdeq iterates in the feature maps of all sites, as one would write it with that library.
    """

    tolerance = 1e-5

    def __init__(self, net: cbl.ContextLoop, x: Tensor, features: bool = False) -> None:
        self.net, self.x, self.features = net, x, features
        space = "theirs in the feature maps" if features else "both in its context"
        self.name = f"CNN loop, {space}"

    def leaves(self) -> list[Tensor]:
        return [*self.net.adapters.parameters(), *self.net.context.parameters()]

    def ours(self, solver: Solver, tolerance: float, steps: int, differentiate: bool) -> Tensor:
        rule = Implicit(tolerance=self.tolerance)
        with torch.set_grad_enabled(differentiate):
            r = self.net.refine(self.x, steps=steps, solver=solver, gradient=rule, halting=Tolerance(tolerance))
        self.rows += int(r.evaluations.sum())
        return r.output

    def theirs(self, options: Options, solver_options: Options, differentiate: bool) -> Tensor:
        if self.features:
            return self._in_features(options, solver_options, differentiate)
        with torch.set_grad_enabled(differentiate), self.net.mapped(Call((self.x,), {})) as g:

            def evaluate(s: Tensor) -> Tensor:
                self.rows += len(s)
                return g(s).value

            found = run_deq(evaluate, g.prepare(), options, solver_options, differentiate)
            assert isinstance(found, Tensor)
            return found

    def _in_features(self, options: Options, solver_options: Options, differentiate: bool) -> Tensor:
        net, b = self.net, self.net.backbone
        psi = list(net.adapters.values())

        def head(h: Tensor) -> Tensor:
            return b.fc2(torch.relu(b.fc1(h.flatten(1))))

        def evaluate(*hidden: Tensor) -> list[Tensor]:
            self.rows += len(self.x)
            z = net.context(head(hidden[-1]))
            h1 = psi[0](first, z)
            h2 = psi[1](b.block2(h1), z)
            return [h1, h2, psi[2](b.block3(h2), z)]

        with torch.set_grad_enabled(differentiate):
            first = b.block1(self.x)
            second = b.block2(first)
            found = run_deq(evaluate, [first, second, b.block3(second)], options, solver_options, differentiate)
            assert isinstance(found, list)
            return head(found[-1])

    def residual(self, answer: Tensor) -> Tensor:
        with torch.no_grad(), self.net.mapped(Call((self.x,), {})) as g:
            g.prepare()
            value = g(answer).value
            return (value - answer).norm(dim=1) / value.norm(dim=1)

    def exactly(self) -> LoopCase:
        case = LoopCase(copy.deepcopy(self.net).double(), self.x.double(), self.features)
        case.tolerance = 1e-12
        return case

    def reference(self) -> Solver:
        return Newton()


def loop(batch: int = 64, features: bool = False) -> Case:
    """Images of contrasts from 0.03 to 1, FiLM weights large enough that the strong ones are hard."""
    torch.manual_seed(6)
    x = torch.randn(batch, 3, 32, 32) * torch.logspace(-1.5, 0, batch)[:, None, None, None]
    sites = ["block1", "block2", "block3"]
    net = cbl.ContextLoop(StandardCNN(width=8), sites, x[:2], step_norm="frozen").eval()
    for adapter in net.adapters.values():
        scale, shift = adapter.linear.weight.chunk(2)
        nn.init.normal_(scale, std=2.5)
        nn.init.normal_(shift, std=0.05)
        nn.init.normal_(adapter.linear.bias, std=0.05)
    return LoopCase(net, x, features)


CASES: dict[str, Callable[..., Case]] = {
    "affine": affine,
    "tanh": tanh,
    "convolution": convolution,
    "loop": loop,
    "features": lambda batch=64: loop(batch, features=True),
}
