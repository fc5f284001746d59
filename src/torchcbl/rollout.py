"""The steps of one call, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from torchcbl.adapters import Attending, bind
from torchcbl.backbone.calls import Call
from torchcbl.backbone.masks import real_positions
from torchcbl.refinement import relative_change
from torchcbl.schedules import Psi, State, find_schedule
from torchcbl.stages import Cut

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


@dataclass(frozen=True)
class Rollout:
    """What a run of the loop gives.

    Args:
        outputs: y_0..y_T.
        residuals: (B,) for each step at which it was measured.
        returned: The backbone's own output at step T, y_T within it.
    """

    outputs: list[Tensor]
    residuals: list[Tensor]
    returned: object


@dataclass(frozen=True)
class Roller:
    """Run a loop's steps on one call.

    Args:
        net: The loop.
        call: The backbone's arguments.
        psi: One callable psi(h, z) per site, in execution order.
        tokens: What hands context tokens to attention layers, if an adapter has some.
    """

    net: ContextLoop
    call: Call
    psi: Sequence[Psi]
    tokens: Attending | None

    def run(self, cut: Cut, steps: int, measure: bool) -> Rollout:
        """Run step 0 and then T steps, T at least 1; measure residuals where they cannot be told from the outputs."""
        with cut.session():
            return self._run(cut, steps, measure)

    def _run(self, cut: Cut, steps: int, measure: bool) -> Rollout:
        alpha, order = self.net.config.alpha, find_schedule(self.net.config.schedule)
        read, context = self.net.read_output, self.net.context
        first = cut.first(self.call)
        carried = order.carries_hidden(alpha)
        state = State(first.returned, first.source, first.states if carried else ())
        outputs, residuals = [read(first.returned)], []
        made_from = outputs[0] if first.source is None else first.source
        mask = real_positions(self.net.backbone, self.call, made_from, context.channel_dim)
        psi = bind(self.psi, mask, self.tokens)
        for step in range(1, steps + 1):
            z = context(outputs[-1] if state.source is None else state.source, mask)
            new = order.step(cut, first, state, z, psi, alpha, step)
            if self.tokens is not None:
                self.tokens.joined = None  # the context is none of the layers that see them
            if measure and carried:
                residuals.append(relative_change(new.hidden, state.hidden))
            outputs.append(read(new.returned))
            state = new
        return Rollout(outputs, residuals, state.returned)
