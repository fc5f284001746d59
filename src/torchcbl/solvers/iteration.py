"""The iteration s = G(s): one solver, one stopping rule, each sample by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from torchcbl.halting import Halting, Never, Progress
from torchcbl.refinement import Path, Status, is_finite, judge, relative
from torchcbl.solvers.base import Evaluation, Map, NotSelectableError, Solver, select_memory
from torchcbl.solvers.ledger import Ledger


@dataclass
class Trace:
    """What an iteration leaves, in the order of the batch.

    Args:
        value: G at the last point of each sample, (B, N).
        point: That point, (B, N).
        output: y_T.
        outputs: y_1..y_T; a finished sample's last output stands for its remaining steps. Or y_T alone: see `iterate`.
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
    keep_outputs: bool = True,
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
        keep_outputs: Whether the outputs of all steps are kept. Where they are as large as the state, they are what
            takes memory.
    """
    solver.check_size(s.shape[1])
    tolerance = halting.tolerance if tolerance is None else tolerance
    run = _Run(g, solver, halting, compact, s, output, tolerance, keep_outputs)
    for step in range(first, first + steps):
        run.take(step, is_last=step == first + steps - 1)
    return run.trace(steps)


class _Look(NamedTuple):
    """What an evaluation says of those in the batch."""

    evaluation: Evaluation
    residual: Tensor
    length: Tensor
    wanted: Tensor
    """Whom the stopping rule would let go."""


@dataclass
class _Run:
    """One iteration, as far as it has come. A sample is written into the ledger once, when it is done."""

    g: Map
    solver: Solver
    halting: Halting
    compact: bool
    s: Tensor
    """The iterate of those who are in the batch."""
    output: Tensor
    """The present output of everyone, if outputs are kept."""
    tolerance: float | None
    keep_outputs: bool
    outputs: list[Tensor] = field(default_factory=list)
    last: Evaluation | None = None
    taken: int = 0
    frozen: Tensor | None = None
    """Who in the batch is done already, where the done cannot leave."""

    def __post_init__(self) -> None:
        self.whole = self.g
        self.left = self.count = len(self.s)
        self.start = self.s
        self.present = torch.arange(self.count, device=self.s.device)
        self.scale = self.g.norm(self.s.detach())  # the first step's length is added
        self.previous = self.output.detach()
        self.memory = self.solver.init(self.s)
        self.rule = self.halting.begin()
        self.ledger = Ledger(self.count)

    def take(self, step: int, is_last: bool) -> None:
        """Take a step, or stand still when nobody is left."""
        if self.left:
            look = self._look(self.g(self.s, step), step)
            if is_last:
                self._close_all(look)
            else:
                self._advance(look, self._ended(look), step)
        if self.keep_outputs:
            self.outputs.append(self.output)

    def _look(self, evaluation: Evaluation, step: int) -> _Look:
        """Measure what a step has brought to those in the batch."""
        value, made = evaluation.value, evaluation.output
        with torch.no_grad():
            length = self.g.norm(value - self.s)
            residual = relative(length, self.g.norm(value))
            progress = Progress(step, residual, made.detach(), self.previous, self.g.real)
            wanted, self.rule = self.halting.done(progress, self.rule)
            if wanted.shape != residual.shape or wanted.dtype != torch.bool:
                raise ValueError(
                    f"{type(self.halting).__name__}.done returned {wanted.dtype} {tuple(wanted.shape)}, expected one "
                    f"boolean per sample, {tuple(residual.shape)}."
                )
            self.scale = self.scale if self.taken else self.scale + length
        self.taken += 1
        self.ledger.note(self.present, residual, length)
        everyone = len(self.present) == self.count and self.frozen is None
        self.last = evaluation if everyone else None
        self.previous = made.detach()
        if self.keep_outputs:
            self.output = made if everyone else self._put(made)
        return _Look(evaluation, residual, length, wanted)

    def _put(self, made: Tensor) -> Tensor:
        """Put the outputs of those who run into their places."""
        rows = self._running()
        index, part = (self.present, made) if rows is None else (self.present[rows], made[rows])
        return self.output.index_copy(0, index, part.to(self.output.dtype))

    def _running(self) -> Tensor | None:
        """Return the rows of those who run, None for all."""
        return None if self.frozen is None else (~self.frozen).nonzero()[:, 0]

    def _ended(self, look: _Look) -> Tensor | None:
        """Write those who are done into the ledger, and return their rows, None for nobody's."""
        if isinstance(self.halting, Never):
            return None
        value, made, _ = look.evaluation
        with torch.no_grad():
            known = look.length
            for whole in (value,) if _same(made, value) else (value, made):
                known = torch.add(known, whole.detach().flatten(1).sum(dim=1), alpha=0)  # NaN where that is not finite
            ended = look.wanted | ~(known <= self.solver.diverged_above * self.scale)
            if self.frozen is not None:
                ended = ended & ~self.frozen
            rows = ended.nonzero()[:, 0]
            if not len(rows):
                return None
            status = self._judge(look)[rows]
            sure = look.wanted[rows] | (status == Status.non_finite) | (status == Status.diverged)
            if not bool(sure.all()):  # large, but small against what it was added to; or not finite in padding alone
                rows, status = rows[sure], status[sure]
                if not len(rows):
                    return None
        self._close(look, rows, status)
        return rows

    def _judge(self, look: _Look) -> Tensor:
        """Say how each in the batch would end now."""
        value, made, _ = look.evaluation
        finite = is_finite(self.g.without_padding(value))
        if not _same(made, value):
            finite = finite & is_finite(made, self.g.real)
        above = self.solver.diverged_above
        return judge(look.residual, look.length, self.scale, finite, self.tolerance, look.wanted, above)

    def _close(self, look: _Look, rows: Tensor | None, status: Tensor) -> None:
        """Write samples into the ledger, all of the batch if `rows` is None."""
        (value, output, _), index, point = look.evaluation, self.present, self.s
        if rows is not None:
            value, point, index = value.index_select(0, rows), point.index_select(0, rows), index[rows]
            output = output if self.keep_outputs else output.index_select(0, rows)
        self.ledger.close(index, value, point, None if self.keep_outputs else output, status, self.taken)
        self.left -= len(index)

    def _close_all(self, look: _Look) -> None:
        """Write those who still run into the ledger."""
        rows = self._running()
        with torch.no_grad():
            status = self._judge(look)
        self._close(look, rows, status if rows is None else status[rows])

    def _advance(self, look: _Look, ended: Tensor | None, step: int) -> None:
        """Let those go who are done, and move the others on."""
        s, value = self.s, look.evaluation.value
        if not self.left:
            return
        if ended is not None:
            keep = self._let_go(ended)
            s, value = (s, value) if keep is None else (s.index_select(0, keep), value.index_select(0, keep))
        new, self.memory = self.g.advance(self.solver, self.memory, s, value, step)
        self.s = new if self.frozen is None else torch.where(self.frozen[:, None], s, new)

    def _let_go(self, rows: Tensor) -> Tensor | None:
        """Take samples out of the batch and return which of its rows stay; or freeze them, and return None."""
        gone = torch.zeros(len(self.present), dtype=torch.bool, device=rows.device).index_fill(0, rows, True)
        if self.compact:
            keep = (~gone).nonzero()[:, 0]
            try:
                self.g = self.whole.select(self.present[keep])
            except NotSelectableError:
                self.compact = False
            else:
                self.present, self.scale, self.previous = self.present[keep], self.scale[keep], self.previous[keep]
                self.memory, self.rule = select_memory(self.memory, keep), select_memory(self.rule, keep)
                return keep
        self.frozen = gone if self.frozen is None else self.frozen | gone
        return None

    def trace(self, steps: int) -> Trace:
        """Return what there is after `steps` steps, of which those after the last sample was done were none."""
        value, point, made, taken, status = self.ledger.settle(self.start, self.output)
        residuals, moved = self.ledger.rows(taken, steps, self.scale)
        output = self.output if self.keep_outputs else made
        return Trace(
            value=value,
            point=point,
            output=output,
            outputs=self.outputs if self.keep_outputs or not steps else [output],
            residuals=residuals,
            moved=moved,
            steps=taken,
            status=status,
            evaluations=taken + self.solver.extra_evaluations(self.start.shape[1]) * (taken - 1).clamp(min=0),
            last=self.last,
        )


def _same(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are the same numbers in the same place, as an output that is the state itself."""
    if a is b:
        return True
    alike = a.numel() == b.numel() and a.dtype == b.dtype and a.is_contiguous() and b.is_contiguous()
    try:
        return alike and a.data_ptr() == b.data_ptr()
    except RuntimeError:  # within a transform of torch.func there is no storage to compare
        return False
