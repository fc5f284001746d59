"""What a gradient rule is: how the answer of an iteration is made differentiable."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.halting import Halting
from torchcbl.solvers.base import Map, Solver
from torchcbl.solvers.iteration import Trace, iterate
from torchcbl.transforms import in_transform


@dataclass(frozen=True)
class Problem:
    """An iteration to be run.

    Args:
        g: The map.
        start: s_0, (B, N).
        output: y_0, (B, ...).
        solver: Chooses the next iterate.
        halting: Says who is done.
        steps: T, at least 0.
        compact: Whether finished samples leave the batch.
        keep_outputs: Whether y_1..y_{T-1} are kept too.
    """

    g: Map
    start: Tensor
    output: Tensor
    solver: Solver
    halting: Halting
    steps: int
    compact: bool = True
    keep_outputs: bool = True

    def iterate(self, steps: int | None = None, g: Map | None = None) -> Trace:
        """Run it, with fewer steps or through another map if given."""
        steps = self.steps if steps is None else steps
        g = self.g if g is None else g
        options = {"compact": self.compact, "keep_outputs": self.keep_outputs}
        return iterate(g, self.start, self.output, self.solver, self.halting, steps, **options)


class Gradient(ABC):
    """Run an iteration so that its answer has a gradient; without gradients every rule is the iteration alone."""

    name: str
    needs_one_map = False
    """Whether G must be the same at every step, so that there is a fixed point to speak of."""
    in_transforms = True
    """Whether it works within torch.func's transforms."""

    def run(self, problem: Problem) -> Trace:
        """Iterate; y_T in the trace has this rule's gradient.

        Raises:
            RuntimeError: This runs within a transform of torch.func, for which the rule has no gradient.
        """
        if problem.steps == 0 or not torch.is_grad_enabled():
            return problem.iterate()
        if not self.in_transforms and in_transform():
            raise RuntimeError(
                f"gradient={self.name!r} has no gradient within transforms of torch.func (grad, vjp, jacrev, jvp, "
                "vmap): use loss.backward() or torch.autograd.grad, or gradient='bptt' or 'phantom'; or "
                "torch.no_grad(), if you need no gradient."
            )
        return self.differentiate(problem)

    @abstractmethod
    def differentiate(self, problem: Problem) -> Trace:
        """Iterate with gradients, at least one step."""


@contextmanager
def without_gradients() -> Iterator[None]:
    """Compute without gradients what is computed with them afterwards.

    Autocast keeps the weights that it has cast; torch before its pull request 165068 also those without their graph,
    which would have no gradient afterwards.
    """
    with torch.no_grad():
        yield
    torch.clear_autocast_cache()


def attach(trace: Trace, g: Map, s: Tensor) -> Trace:
    """Make what belongs to s (B, N), which has a gradient, the answer of an iteration that had none."""
    last = g.finish(s, max(1, len(trace.residuals)))
    trace.evaluations = trace.evaluations + g.finish_evaluations
    trace.value, trace.output, trace.last = s, last.output, last
    trace.outputs[-1] = last.output
    return trace
