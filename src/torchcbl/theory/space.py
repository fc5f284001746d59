"""The map that Theorem 3.1 speaks of, for one call of a loop: F, and the loop's own step G = alpha + (1 - alpha) F."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.language import without_cache
from torchcbl.rollout import LoopMap
from torchcbl.schedules import State
from torchcbl.solvers import Picard
from torchcbl.solvers.jacobian import linearising

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


class Space:
    """The states of one call as vectors (B, N), and the maps on them.

        G(s) = alpha s + (1 - alpha) F(s)                                       (Eq. 11)

    With "repropagate" and alpha = 0 a state is what a step hands to the next, y or z. Otherwise it is the hidden states
    (h^1..h^L) alone, which is where Eq. 11 damps: y and z are computed from them. Where the loop is not that iteration
    (`departure`), G acts on what it does hand on, y or z and the hidden states, and F still on the latter alone.

    Args:
        g: One call of the loop.
        step: Which step's map: T, whose batch statistics all later steps use as well.
    """

    def __init__(self, g: LoopMap, step: int) -> None:
        self.g = g
        self.at_step = step
        self.carries_hidden = g.order.carries_hidden(g.alpha)
        self.start = g.prepare()
        """s_0, what G starts from."""
        solver = g.net.config.settings.solver
        self.damping = solver.damping if isinstance(solver, Picard) else 0.0
        self.alpha = g.alpha + self.damping * (1.0 - g.alpha)
        """The weight of the old state, with the damping of the loop's own Picard iteration in it."""
        self.size = self.start.shape[1]
        if self.carries_hidden:
            self.like = g.first.states
            self.sizes = [prod(h.shape[1:]) for h in self.like]
            self.size = sum(self.sizes)
            if not self.departure:
                self.start = self._pack(self.like)
        self.name = "h" if self.carries_hidden else "z" if g.in_z else "y"

    @functools.cached_property
    def departure(self) -> str:
        """Why the loop is not Eq. 11's iteration of F; empty where it is."""
        if not self.carries_hidden:
            return ""
        if self.g.order.name == "repropagate" and len(self.sizes) > 1:
            return (
                "with alpha > 0 'repropagate' computes each site from the damped one below it, which is not Eq. 11's "
                "iteration of one map: use alpha = 0 with Picard(damping=...), or one site"
            )
        if self.damping > 0:
            return (
                "Picard(damping=...) damps the context besides the hidden states, which is not Eq. 11's iteration of "
                "them: use alpha alone, or damping with schedule='repropagate' and alpha = 0"
            )
        if not self._output_follows():
            return (
                "the output of a step depends on more than that step's hidden states, since a path leads past the "
                "highest site: use schedule='repropagate'"
            )
        return ""

    @property
    def has_kernel(self) -> bool:
        """Whether F maps some direction to zero for certain: it sees the highest site through fewer numbers."""
        return self.carries_hidden and self.g.order.name != "literal" and self.sizes[-1] > self.g.sizes[0]

    def states(self, s: Tensor) -> Tensor:
        """What F acts on, of what G acts on."""
        return s[:, -self.size :] if self.departure else s

    def undamped(self, s: Tensor) -> Tensor:
        """Evaluate F, (B, N) to (B, N)."""
        if not self.carries_hidden:
            return self.g(s, self.at_step).value
        g, hidden = self.g, self._unpack(s)
        new: dict[int, Tensor] = {}

        def refine(index: int, h: Tensor, z: Tensor) -> Tensor:
            new[index] = g.psi[index](h, z)
            return new[index]

        psi = [functools.partial(refine, index) for index in range(len(g.psi))]
        g.order.step(g.cut, g.first, State(None, None, hidden), self._context(hidden), psi, 0.0, self.at_step)
        if g.tokens is not None:
            g.tokens.joined = None
        return self._pack([new[index] for index in range(len(psi))])

    def step(self, s: Tensor) -> Tensor:
        """Evaluate the loop's own step G, the damping of its Picard iteration included."""
        if self.departure:
            return torch.lerp(self.g(s, self.at_step).value, s, self.damping)
        value = self.undamped(s)
        return torch.lerp(value, s, self.alpha) if self.alpha else value

    def _context(self, hidden: Sequence[Tensor]) -> Tensor:
        """Compute the z that belongs to hidden states."""
        g = self.g
        passed = g.cut.rerun(g.first, lambda index, raw: hidden[index], self.at_step)
        if g.tokens is not None:
            g.tokens.joined = None
        state = State(passed.returned, passed.source, ())
        return g.context(state, g.net.read_output(passed.returned))

    def _output_follows(self) -> bool:
        """Say whether the context after two steps is what the hidden states after two steps give, on this call."""
        g = self.g
        with torch.no_grad():
            once = g.step(g.context(g.start, g.output), g.start, self.at_step)
            twice = g.step(g.context(once, g.net.read_output(once.returned)), once, self.at_step)
            theirs = g.context(twice, g.net.read_output(twice.returned))
            ours = self._context(twice.hidden)
        scale = float(theirs.abs().max()) if theirs.numel() else 0.0
        return torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale, equal_nan=True)

    def _pack(self, hidden: Sequence[Tensor]) -> Tensor:
        dtype = functools.reduce(torch.promote_types, [h.dtype for h in hidden], torch.float32)
        return torch.cat([h.flatten(1).to(dtype) for h in hidden], dim=1)

    def _unpack(self, s: Tensor) -> tuple[Tensor, ...]:
        parts = zip(torch.split(s, self.sizes, dim=1), self.like, strict=True)
        return tuple(part.reshape(len(s), *like.shape[1:]).to(like.dtype) for part, like in parts)


@contextmanager
def opened(net: ContextLoop, call: Call) -> Iterator[Space]:
    """Run step 0 of a call in eval mode, and give the maps on its states for as long as the context is open.

    Attention is computed unfused meanwhile, since fused kernels can be differentiated but once, and not forwards.
    Gradients are on within, whatever they were outside, and no context is detached.
    """
    call = without_cache(net.backbone, call)
    math = sdpa_kernel(SDPBackend.MATH)
    with torch.inference_mode(False), evaluating(net), math, linearising(), net.mapped(call) as g:
        yield Space(g, max(1, net.config.steps))
