"""Backpropagation through time: whole, truncated, or with steps computed again in the backward pass."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torchcbl.checks import check_count
from torchcbl.gradients.base import Gradient, Problem, without_gradients
from torchcbl.halting import Never
from torchcbl.refinement import Status
from torchcbl.solvers.base import Evaluation, Map, Memory, Solver
from torchcbl.solvers.iteration import Trace, iterate
from torchcbl.solvers.picard import Picard


@dataclass(frozen=True)
class Bptt(Gradient):
    """Differentiate through all steps: exact for the T steps that were taken, memory grows with T.

    Every output y_0..y_T has its gradient, so the loss may weight them all (Eq. 9). The solver's own arithmetic is
    differentiated too.

    Source:
        Werbos 1990, Backpropagation Through Time.

    Example:
        >>> Bptt()
        Bptt()
    """

    name = "bptt"

    def differentiate(self, problem: Problem) -> Trace:
        """Iterate with gradients."""
        return problem.iterate()


@dataclass(frozen=True)
class Checkpointed(Gradient):
    """Differentiate through all steps, each computed again in the backward pass: `Bptt`'s gradient, to the last bit
    where torch computes alike twice, for one more evaluation of each step and the memory of one.

    What is kept of each step is its state s: the context where the loop carries that alone.

    Source:
        Griewank and Walther 2000; Chen et al. 2016, arXiv 1604.06174.

    Example:
        >>> Checkpointed()
        Checkpointed()
    """

    name = "checkpointed"
    in_transforms = False

    def differentiate(self, problem: Problem) -> Trace:
        """Iterate with gradients, keeping the states alone."""
        return problem.iterate(g=_CheckpointedMap(problem.g))


class _CheckpointedMap(Map):
    def __init__(self, g: Map) -> None:
        self.g = g
        self.real = g.real

    def without_padding(self, s: Tensor) -> Tensor:
        return self.g.without_padding(s)

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        def evaluate(point: Tensor) -> tuple[Tensor, Tensor, object]:
            value, output, returned = self.g(point, step)
            return value, output, returned

        return Evaluation(*checkpoint(evaluate, s, use_reentrant=False, context_fn=self.g.checkpointing))

    def advance(self, solver: Solver, memory: Memory, s: Tensor, value: Tensor, step: int) -> tuple[Tensor, Memory]:
        if not solver.extra_evaluations(s.shape[1]):
            return self.g.advance(solver, memory, s, value, step)
        advance = self.g.advance
        made = checkpoint(advance, solver, memory, s, value, step, use_reentrant=False, context_fn=self.g.checkpointing)
        assert isinstance(made, tuple)
        return made

    def select(self, index: Tensor) -> Map:
        return _CheckpointedMap(self.g.select(index))


@dataclass(frozen=True)
class Truncated(Gradient):
    """Differentiate through the last k of the T steps only.

    The first T - k steps are taken by the solver without gradients, until they are done; the last k are plain (or
    damped, as `Picard`'s) steps from there; those of a loop begin with z = g(y), whichever of the two it carries. So
    the outputs y_1..y_{T-k} have no gradient: give them no weight in the loss. Biased by what the earlier steps would
    have added: of order gamma^k near the fixed point of a contraction.

    Args:
        steps: k, at least 1; with k >= T it is `Bptt`.

    Raises:
        ValueError: k is below 1.

    Source:
        Williams and Peng 1990; at a fixed point: Shaban et al. 2019, arXiv 1810.10667.

    Example:
        >>> Truncated(steps=2)
        Truncated(steps=2)
    """

    steps: int = 1
    name = "truncated"

    def __post_init__(self) -> None:
        check_count("Truncated", "steps", self.steps)

    def differentiate(self, problem: Problem) -> Trace:
        """Iterate T - k steps without gradients and k with."""
        if self.steps >= problem.steps:
            return problem.iterate()
        with without_gradients():
            early = problem.iterate(problem.steps - self.steps)
        solver = problem.solver if isinstance(problem.solver, Picard) else Picard()
        start, _ = solver.step((), early.point, problem.g.resume(early), lambda s: s)
        late = iterate(
            problem.g,
            start,
            early.output,
            solver,
            Never(),
            self.steps,
            problem.compact,
            first=len(early.residuals) + 1,
            tolerance=problem.halting.tolerance,
            keep_outputs=problem.keep_outputs,
        )
        late.evaluations = late.evaluations + problem.g.resume_evaluations
        return _join(early, late)


def _join(early: Trace, late: Trace) -> Trace:
    """Two traces, one after the other; what ended badly in the first has ended badly."""
    bad = (early.status == Status.diverged) | (early.status == Status.non_finite)
    halted = (early.status == Status.halted) & (late.status == Status.max_steps)
    all_kept = len(early.outputs) == len(early.residuals)
    return replace(
        late,
        outputs=[*early.outputs, *late.outputs] if all_kept else late.outputs,
        residuals=[*early.residuals, *late.residuals],
        moved=[*early.moved, *late.moved],
        steps=early.steps + late.steps,
        status=torch.where(bad | halted, early.status, late.status),
        evaluations=early.evaluations + late.evaluations,
    )
