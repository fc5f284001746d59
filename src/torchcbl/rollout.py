"""The steps of one call: one after the other, or as the map G whose fixed point a solver looks for."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcbl.adapters import Attending, bind
from torchcbl.adapters.bounded import Limits, bounds_kept, limits_kept
from torchcbl.adapters.joining import attending_again
from torchcbl.backbone.calls import Call
from torchcbl.backbone.layout import write_like
from torchcbl.backbone.masks import RealPositions, attention_mask
from torchcbl.eager import uncompiled
from torchcbl.gradients.base import Problem, without_gradients
from torchcbl.refinement import Path, move, norm
from torchcbl.schedules import Psi, State, find_schedule
from torchcbl.settings import Settings
from torchcbl.solvers.base import Evaluation, Map
from torchcbl.solvers.iteration import Trace
from torchcbl.stages import Cut
from torchcbl.step_norm import CallStatistics, Step

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


@dataclass(frozen=True)
class Rollout:
    """What a run of the loop gives.

    Args:
        outputs: y_0..y_T.
        returned: The backbone's own output at step T, y_T within it.
        path: How the states moved, where that was measured.
    """

    outputs: list[Tensor]
    returned: object
    path: Path | None = None


class LoopMap(Map):
    """One call of a loop: what step 0 gave, and the map G from each step's state to the next.

    What one step hands to the next is s = (c, h^(1)..h^(L)): c is y or z, whichever has fewer numbers (z where it is
    made from a submodule), and the hidden states are there where the schedule carries them. As a vector, s is (B, N)
    in at least float32.

    Args:
        net: The loop.
        call: The backbone's arguments.
        cut: The cut that runs it.
        psi: One callable psi(h, z) per site, in execution order.
        tokens: What hands context tokens to attention layers, if an adapter has some.
    """

    def __init__(
        self, net: ContextLoop, call: Call, cut: Cut, psi: Sequence[Psi], tokens: Attending | None = None
    ) -> None:
        self.net = net
        self.call = call
        self.cut = cut
        self.adapters = psi
        self.tokens = tokens
        self.order = find_schedule(net.config.schedule)
        self.alpha = net.config.alpha
        self.first = cut.first(call)
        self.output = net.read_output(self.first.returned)
        """y_0."""
        made_from = self.output if self.first.source is None else self.first.source
        self.positions = RealPositions(net.backbone, attention_mask(net.backbone, call), self.output.shape[0])
        self.mask = self.positions.of(made_from, 1 if net.context.channel_dim in (-1, 2) else 2)
        """Which positions of what the context is made from are real."""
        real = self.positions.of(self.output, 1)
        self.real = None if real is None else real.bool()
        self.psi = bind(psi, self.mask, tokens)
        self.statistics = CallStatistics(net)
        self.padding: Tensor | None = None
        """Which numbers of s are padding, (B, N); None for none."""

    @property
    def start(self) -> State:
        """The state after step 0."""
        carried = self.order.carries_hidden(self.alpha)
        return State(self.first.returned, self.first.source, self.first.states if carried else ())

    def roll(self, steps: int, measure: bool) -> Rollout:
        """Take T steps one after the other, T at least 1, and measure how the states moved if asked to."""
        state, y = self.start, self.output
        z = self.context(state, y)
        outputs, moves = [y], []
        parts = self._real_parts(state, y, z) if measure else ()
        start = norm(parts) if measure else None
        for step in range(1, steps + 1):
            state = self.step(z, state, step)
            y = self.net.read_output(state.returned)
            outputs.append(y)
            if step < steps or (measure and self.solves_z(y, z)):
                z = self.context(state, y)
            if measure:
                old, parts = parts, self._real_parts(state, y, z)
                moves.append(move(parts, old))
        path = None if start is None else Path.from_moves(start, moves, outputs, self.real)
        return Rollout(outputs, state.returned, path)

    def context(self, state: State, y: Tensor) -> Tensor:
        """Compute z_t from the state and y_t."""
        z: Tensor = self.net.context(y if state.source is None else state.source, self.mask)
        return z

    def step(self, z: Tensor, state: State, step: Step) -> State:
        """Compute the state of step tau from the one before."""
        new = self.order.step(self.cut, self.first, state, z, self.psi, self.alpha, step)
        if self.tokens is not None:
            self.tokens.joined = None  # the context is none of the layers that see them
        return new

    def solves_z(self, y: Tensor, z: Tensor) -> bool:
        """Say whether z stands in the state, not y."""
        return self.first.source is not None or z[:1].numel() < y[:1].numel()

    def _parts(self, state: State, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        return (z if self.solves_z(y, z) else y, *state.hidden)

    def _real_parts(self, state: State, y: Tensor, z: Tensor) -> tuple[Tensor, ...]:
        """The parts without what is padding."""
        parts = self._parts(state, y, z)
        if self.positions.mask is None:
            return parts
        counted = [self._counted(part, axis) for part, axis in zip(parts, self._position_axes(), strict=True)]
        return tuple(
            part if which is None else part.masked_fill(~which, 0) for part, which in zip(parts, counted, strict=True)
        )

    def _position_axes(self) -> list[int]:
        """Which axis of each part holds the positions, where it has three."""
        carried = self.net.sites if self.start.hidden else ()
        return [1, *(2 if site.channel_dim in (1, -2) else 1 for site in carried)]

    def _counted(self, part: Tensor, axis: int) -> Tensor | None:
        """Which entries of a part are no padding, or None for all."""
        real = self.positions.of(part, axis)
        return None if real is None else real.bool().unsqueeze(3 - axis)

    # As a map of vectors

    def pack(self, state: State, y: Tensor) -> Tensor:
        """Write a state as vectors (B, N)."""
        parts = self._parts(state, y, self.context(state, y) if self.in_z else y)
        flat = [part.flatten(1) for part in parts]
        dtype = functools.reduce(torch.promote_types, [part.dtype for part in flat], torch.float32)
        return flat[0].to(dtype) if len(flat) == 1 else torch.cat([part.to(dtype) for part in flat], dim=1)

    def unpack(self, s: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Read c and the hidden states out of vectors (B, N)."""
        parts = [
            part.reshape(len(s), *like.shape[1:]).to(like.dtype)
            for part, like in zip(torch.split(s, self.sizes, dim=1), self.like, strict=True)
        ]
        return parts[0], tuple(parts[1:])

    def prepare(self) -> Tensor:
        """Fix what s consists of, and return s_0 (B, N)."""
        state, y = self.start, self.output
        z = self.context(state, y)
        self.in_z = self.solves_z(y, z)
        self.like = self._parts(state, y, z)
        self.sizes = [prod(part.shape[1:]) for part in self.like]
        self.answer_is_s = not self.in_z and self.first.returned is self.output
        self.finish_evaluations = 0 if self.answer_is_s else 1
        self.resume_evaluations = 1 if self.in_z and self.first.source is not None else 0
        self.dtypes = tuple(h.dtype for h in self.first.states)
        self.padding = self._find_padding()
        return self.pack(state, y)

    def _find_padding(self) -> Tensor | None:
        """Say what of the state is padding, on which no sample's end must depend."""
        counted = [self._counted(part, axis) for part, axis in zip(self.like, self._position_axes(), strict=True)]
        if all(which is None for which in counted):
            return None
        whole = [
            (torch.ones_like(part, dtype=torch.bool) if which is None else which.expand_as(part)).flatten(1)
            for part, which in zip(self.like, counted, strict=True)
        ]
        return ~torch.cat(whole, dim=1)

    def without_padding(self, s: Tensor) -> Tensor:
        """See `Map.without_padding`."""
        return s if self.padding is None else s.masked_fill(self.padding, 0)

    def with_padding(self, s: Tensor, other: Tensor) -> Tensor:
        """See `Map.with_padding`."""
        return s if self.padding is None else torch.where(self.padding, other, s)

    def __call__(self, s: Tensor, step: Step = 1) -> Evaluation:
        """Evaluate G: one step of the loop."""
        c, hidden = self.unpack(s)
        z = c if self.in_z else self.net.context(c, self.mask)
        new = self.step(z, State(None, None, hidden), step)
        y = self.net.read_output(new.returned)
        return Evaluation(self.pack(new, y), y, new.returned)

    def finish(self, s: Tensor, step: int) -> Evaluation:
        """Return the answer that belongs to s: y in it where that is all the backbone returns, else a step from it."""
        if not self.answer_is_s:
            return super().finish(s, step)
        y = self.unpack(s)[0]
        return Evaluation(s, y, y)

    def resume(self, early: Trace) -> Tensor:
        """See `Map.resume`: a step begins with z = g(.), so where s holds z, that is computed again."""
        if not self.in_z:
            return early.value
        made_from: Tensor | None = early.output
        if self.first.source is not None:  # which the iteration has not kept
            with without_gradients(), self.statistics.restored():
                z, hidden = self.unpack(early.point)
                steps = early.steps if len(early.steps) else 1
                made_from = self.step(z, State(None, None, hidden), steps).source
        assert made_from is not None
        z = self.net.context(made_from.detach(), self.mask).flatten(1).to(early.value.dtype)
        return torch.cat([z, early.value[:, self.sizes[0] :]], dim=1)

    def take_last_steps_again(self, trace: Trace) -> object:
        """Return one object of the backbone's own for samples that ended at different steps, y_T in it as it was.

        Each sample's last step is taken again by that step's statistics, and feeds none. So what the backbone makes of
        the whole batch, as a mean loss, is made of these answers too. Where batch norm normalises by the batch, as in
        training, it does so by that of these last steps, and y alone is to the last bit what it was.
        """
        steps = trace.steps if len(trace.steps) else 1
        with self.statistics.restored():
            returned = self(trace.point, steps).returned
        return write_like(self.net.output_layout, returned, trace.output, self.net.config.output is not None)

    def select(self, index: Tensor) -> LoopMap:
        """Return the map of some of the samples."""
        part = copy.copy(self)
        part.first = self.cut.select(self.first, self.call, index, self.net.read_output)
        part.positions = self.positions.select(index)
        part.mask, part.real, part.padding = (
            None if rows is None else rows.index_select(0, index) for rows in (self.mask, self.real, self.padding)
        )
        part.psi = bind(self.adapters, part.mask, self.tokens)
        return part

    def adapted(self, psi: Sequence[Psi]) -> LoopMap:
        """Return the map of the same call, after the same step 0, with other adapters."""
        other = copy.copy(self)
        other.adapters, other.psi = psi, bind(psi, self.mask, self.tokens)
        return other

    def checkpointing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Put everything in place again for a step that is computed twice, without feeding statistics twice."""
        self.statistics.note()
        return nullcontext(), _Again(functools.partial(self._repeating, limits_kept()))

    @contextmanager
    def _repeating(self, limits: Limits) -> Iterator[None]:
        bounds = bounds_kept(limits)
        with self.statistics.restored(), self.cut.session(), attending_again(self.tokens), bounds:
            yield


class _Again(AbstractContextManager[None]):
    """A context that can be entered any number of times, as repetitions are by second derivatives."""

    def __init__(self, make: Callable[[], AbstractContextManager[None]]) -> None:
        self.make = make
        self.entered: list[AbstractContextManager[None]] = []

    def __enter__(self) -> None:
        context = self.make()
        context.__enter__()
        self.entered.append(context)

    def __exit__(self, *error: object) -> None:
        self.entered.pop().__exit__(*error)  # type: ignore[arg-type]


@uncompiled
def solve_loop(g: LoopMap, settings: Settings) -> Rollout:
    """Look for the fixed point of a call, by whatever solver, gradient rule and stopping rule."""
    start = g.prepare()
    compact = not g.net.training
    problem = Problem(g, start, g.output, settings.solver, settings.halting, settings.steps, compact)
    trace = settings.gradient.run(problem)
    if trace.last is not None:
        returned = trace.last.returned
    elif isinstance(g.first.returned, Tensor) and g.first.returned is g.output:
        returned = trace.output
    else:  # the last outputs of samples that ended at different steps, in one object of the backbone's own
        returned = g.take_last_steps_again(trace)
        trace.evaluations = trace.evaluations + 1
    return Rollout([g.output, *trace.outputs], returned, trace.path())
