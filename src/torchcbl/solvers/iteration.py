"""The iteration s = G(s): one solver, one stopping rule, each sample by itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from torchcbl.halting import Halting, Never, Progress
from torchcbl.refinement import Path, Status, is_finite, judge, relative
from torchcbl.solvers.base import Evaluation, Map, NotSelectableError, Solver, select_memory


@dataclass
class Trace:
    """What an iteration leaves, in the order of the batch.

    Args:
        value: G at the last point of each sample, (B, N).
        point: That point, (B, N).
        output: y_T.
        outputs: y_1..y_T; a finished sample's last output stands for its remaining steps.
        residuals: ||G(s) - s|| / ||G(s)|| at each step, (B,) each; the last one stands likewise.
        moved: ||G(s) - s|| at each step.
        steps: How many steps each sample took, (B,).
        status: How each ended, (B,), by `Status`.
        evaluations: How often G was evaluated for each, products with its Jacobian included, (B,).
        last: The last evaluation when all samples were in it and their outputs are all its own; else None.
    """

    value: Tensor
    point: Tensor
    output: Tensor
    outputs: list[Tensor]
    residuals: list[Tensor]
    moved: list[Tensor]
    steps: Tensor
    status: Tensor
    evaluations: Tensor
    last: Evaluation | None = None

    def path(self) -> Path:
        """Return what a `Refinement` tells of it."""
        batch = self.steps.shape[0]
        nothing = self.value.detach().new_zeros(0, batch)
        return Path(
            residuals=torch.stack(self.residuals) if self.residuals else nothing,
            moved=torch.stack(self.moved) if self.moved else nothing,
            steps=self.steps,
            evaluations=self.evaluations,
            status=self.status,
        )


def iterate(
    g: Map,
    s: Tensor,
    output: Tensor,
    solver: Solver,
    halting: Halting,
    steps: int,
    compact: bool = True,
    first: int = 1,
    tolerance: float | None = None,
) -> Trace:
    """Iterate until every sample is done, at most `steps` times.

    Args:
        g: The map.
        s: s_0, (B, N).
        output: y_0, (B, ...).
        solver: Chooses the next iterate.
        halting: Says who is done. A sample that diverges or is no longer finite is done as well, except under `Never`.
        steps: T, at least 0.
        compact: Whether finished samples leave the batch. Else they stay in it, frozen: the way to take where G mixes
            the samples of its batch, as batch norm does in training.
        first: tau of the first step.
        tolerance: The residual at which a sample counts as converged; None for the stopping rule's, else 1e-4.
    """
    solver.check_size(s.shape[1])
    run = _Run(g, solver, halting, compact, s, output, halting.tolerance if tolerance is None else tolerance)
    for step in range(first, first + steps):
        run.take(step, is_last=step == first + steps - 1)
    return run.trace()


@dataclass
class _Run:
    """One iteration, as far as it has come."""

    g: Map
    solver: Solver
    halting: Halting
    compact: bool
    s: Tensor
    """The iterate of those who are in the batch."""
    output: Tensor
    tolerance: float | None
    value: Tensor = field(init=False)
    point: Tensor = field(init=False)
    outputs: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    moved: list[Tensor] = field(default_factory=list)
    last: Evaluation | None = None

    def __post_init__(self) -> None:
        s, count = self.s, len(self.s)
        self.whole = self.g
        self.value, self.point = s, s
        self.present = torch.arange(count, device=s.device)
        self.running = torch.ones(count, dtype=torch.bool, device=s.device)
        self.steps = torch.zeros(count, dtype=torch.long, device=s.device)
        self.evaluations = torch.zeros_like(self.steps)
        self.status = torch.full_like(self.steps, Status.max_steps)
        self.scale = s.detach().norm(dim=1)  # of the start; the first step's length is added
        self.residual = torch.zeros_like(self.scale)
        self.length = torch.zeros_like(self.scale)
        self.memory = self.solver.init(s)
        self.rule = self.halting.begin()

    def take(self, step: int, is_last: bool) -> None:
        """Take a step, or stand still when nobody is left."""
        if len(self.present) and bool(self.running.any()):
            evaluation = self.g(self.s, step)
            done = self._record(evaluation, step)
            if not is_last:
                self._advance(evaluation, done, step)
        self.outputs.append(self.output)
        self.residuals.append(self.residual)
        self.moved.append(self.length)

    def _record(self, evaluation: Evaluation, step: int) -> Tensor:
        """Note what a step has brought to those in the batch; return who of them is done."""
        value, made = evaluation.value, evaluation.output
        with torch.no_grad():
            length = (value - self.s).norm(dim=1)
            residual = relative(length, value.norm(dim=1))
            previous = self.output if len(self.present) == len(self.output) else self.output[self.present]
            progress = Progress(step, residual, made.detach(), previous.detach())
            wanted, self.rule = self.halting.done(progress, self.rule)
            if not self.outputs:
                self.scale = self.scale + length
            finite = is_finite(value) & is_finite(made)
            status = judge(residual, length, self.scale, finite, self.tolerance, wanted)
        everyone = len(self.present) == len(self.value) and (self.compact or bool(self.running.all()))
        self.last = evaluation if everyone else None
        self.value, self.point = self._put(self.value, value), self._put(self.point, self.s)
        self.output = self._put(self.output, made)
        self.residual, self.length = self._put(self.residual, residual), self._put(self.length, length)
        self.status = self._put(self.status, status)
        ones = torch.ones_like(self._counted())
        self.steps = self.steps.index_add(0, self._counted(), ones)
        self.evaluations = self.evaluations.index_add(0, self._counted(), ones)
        if isinstance(self.halting, Never):
            return torch.zeros_like(wanted)
        return wanted | (status == Status.non_finite) | (status == Status.diverged)

    def _put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Put what those in the batch have into its place; who is frozen keeps the old."""
        gone = len(self.present) < len(whole)
        if self.compact or bool(self.running.all()):
            return whole.index_copy(0, self.present, part.to(whole.dtype)) if gone else part
        if gone:  # some have left, and then the others could not be taken apart any further
            return whole.index_copy(0, self._counted(), part[self.running].to(whole.dtype))
        return torch.where(self.running.reshape(-1, *[1] * (part.ndim - 1)), part, whole)

    def _counted(self) -> Tensor:
        return self.present if self.compact else self.present[self.running]

    def _advance(self, evaluation: Evaluation, done: Tensor, step: int) -> None:
        """Let those go who are done, and move the others on."""
        s, value = self.s, evaluation.value
        if bool(done.any()):
            keep = self._let_go(done)
            s, value = s[keep], value[keep]
        if not len(self.present) or not bool(self.running.any()):
            return
        new, self.memory = self.g.advance(self.solver, self.memory, s, value, step)
        extra = self.solver.extra_evaluations(s.shape[1])
        if extra:
            self.evaluations = self.evaluations.index_add(0, self._counted(), torch.full_like(self._counted(), extra))
        self.s = new if bool(self.running.all()) else torch.where(self.running[:, None], new, self.s)

    def _let_go(self, done: Tensor) -> Tensor:
        """Take those who are done out of the batch, or freeze them; return which of its rows stay."""
        everyone = torch.arange(len(done), device=done.device)
        if self.compact:
            keep = everyone[~done]
            try:
                self.g = self.whole.select(self.present[keep]) if len(keep) else self.g
            except NotSelectableError:
                self.compact = False
            else:
                self.present, self.running, self.scale = self.present[keep], self.running[keep], self.scale[keep]
                self.memory, self.rule = select_memory(self.memory, keep), select_memory(self.rule, keep)
                return keep
        self.running = self.running & ~done
        return everyone

    def trace(self) -> Trace:
        """Return what there is."""
        return Trace(
            value=self.value,
            point=self.point,
            output=self.output,
            outputs=self.outputs,
            residuals=self.residuals,
            moved=self.moved,
            steps=self.steps,
            status=self.status,
            evaluations=self.evaluations,
            last=self.last,
        )
