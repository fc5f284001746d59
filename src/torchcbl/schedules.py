"""The three schedules: in what order the states h^(l) and the output y are updated at a step.

With z_t = g(y_t), psi^l the adapter and f^l the part of the network from site l-1 to site l (SPEC: Eqs. 6-8):

- `literal`: h_{t+1}^l = alpha h_t^l + (1 - alpha) psi^l(h_t^l, z_t), and y_{t+1} from the top site alone
  (Eqs. 7-8 to the letter).
- `repropagate`: h_{t+1}^l = alpha h_t^l + (1 - alpha) psi^l(f^l(h_{t+1}^{l-1}), z_t), bottom-up.
- `synchronous`: h_{t+1}^l = alpha h_t^l + (1 - alpha) psi^l(f^l(h_t^{l-1}), z_t), all sites at once.

alpha weights the OLD state; 0 replaces it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.adapters import adapter_name
from torchcbl.stages.base import Cut, FirstPass
from torchcbl.step_norm import Step

Psi = Callable[[Tensor, Tensor], Tensor]
"""A feedback adapter psi^l(h, z)."""


@dataclass(frozen=True)
class State:
    """What one step hands to the next.

    Args:
        returned: What the backbone returned at this step, y_t within it.
        source: What z_t = g(.) is made from, or None when it is y_t.
        hidden: h_t^(l) from the lowest site to the highest; empty when the schedule does not carry them.
    """

    returned: object
    source: Tensor | None
    hidden: tuple[Tensor, ...]


class Schedule(ABC):
    """An order of updates."""

    name: str

    @abstractmethod
    def start(self, num_sites: int) -> int:
        """Return the index of the lowest site that a step reruns the network from."""

    @abstractmethod
    def min_steps(self, num_sites: int) -> int:
        """Return how many steps the lowest live site needs to reach the output."""

    def carries_hidden(self, alpha: float) -> bool:
        """Say whether h_t is needed to compute step t+1; where not, y_t is all that is carried."""
        del alpha
        return True

    @abstractmethod
    def step(
        self, cut: Cut, first: FirstPass, state: State, z: Tensor, psi: Sequence[Psi], alpha: float, step: Step
    ) -> State:
        """Compute step tau = `step` from the state at tau - 1."""


class Literal(Schedule):
    """Eqs. 7-8 to the letter: every site is refined where it stands, and only the top one reaches the output.

    What crosses the top site's cut (a skip from below) keeps its value of step 0.
    """

    name = "literal"

    def start(self, num_sites: int) -> int:
        """Only the head runs again."""
        return num_sites - 1

    def min_steps(self, num_sites: int) -> int:
        """The top site reaches the output at once, the others never."""
        del num_sites
        return 1

    def step(
        self, cut: Cut, first: FirstPass, state: State, z: Tensor, psi: Sequence[Psi], alpha: float, step: Step
    ) -> State:
        """Refine every state, then run the head from the top one."""
        hidden = tuple(refine(adapter, old, old, z, alpha) for adapter, old in zip(psi, state.hidden, strict=True))
        passed = cut.rerun(first, lambda _, raw: hidden[-1], step)
        return State(passed.returned, passed.source, hidden)


class Repropagate(Schedule):
    """Bottom-up: each site is computed from the refined one below it, then refined itself. Every site is live."""

    name = "repropagate"

    def start(self, num_sites: int) -> int:
        """Everything above the lowest site runs again."""
        del num_sites
        return 0

    def min_steps(self, num_sites: int) -> int:
        """Every site reaches the output at once."""
        del num_sites
        return 1

    def carries_hidden(self, alpha: float) -> bool:
        """With alpha = 0 the states of the step before are not needed."""
        return alpha > 0.0

    def step(
        self, cut: Cut, first: FirstPass, state: State, z: Tensor, psi: Sequence[Psi], alpha: float, step: Step
    ) -> State:
        """Run the network upwards from the lowest site, refining on the way."""
        hidden: list[Tensor] = []

        def visit(index: int, raw: Tensor) -> Tensor:
            if alpha == 0.0:
                return refine(psi[index], raw, raw, z, 0.0)
            hidden.append(refine(psi[index], raw, state.hidden[index], z, alpha))
            return hidden[-1]

        try:
            passed = cut.rerun(first, visit, step)
            return State(passed.returned, passed.source, tuple(hidden))
        finally:
            hidden.clear()  # a checkpointed region keeps `visit`, and must not hold what was made after it


class Synchronous(Schedule):
    """All at once, one stage per step: what a site refines reaches the next site one step later.

    The head reads the new state of the top site; what reaches it past the top site is of the old states.
    """

    name = "synchronous"

    def start(self, num_sites: int) -> int:
        """Everything above the lowest site runs again."""
        del num_sites
        return 0

    def min_steps(self, num_sites: int) -> int:
        """The lowest site is one step below the output for each site above it, and one more."""
        return num_sites

    def step(
        self, cut: Cut, first: FirstPass, state: State, z: Tensor, psi: Sequence[Psi], alpha: float, step: Step
    ) -> State:
        """Compute each stage from the old states and refine what it gives; run the head from the new top state."""
        hidden: list[Tensor] = []

        def visit(index: int, raw: Tensor) -> Tensor:
            hidden.append(refine(psi[index], raw, state.hidden[index], z, alpha))
            return hidden[-1] if index == len(psi) - 1 else state.hidden[index]

        try:
            passed = cut.rerun(first, visit, step)
            return State(passed.returned, passed.source, tuple(hidden))
        finally:
            hidden.clear()  # a checkpointed region keeps `visit`, and must not hold what was made after it


def refine(adapter: Psi, raw: Tensor, old: Tensor, z: Tensor, alpha: float) -> Tensor:
    """Compute alpha * old + (1 - alpha) * psi(raw, z), exactly `old` where psi returns `old` (Eq. 7).

    Raises:
        ValueError: The adapter changed the shape of h.
        TypeError: It did not return a tensor.
    """
    new = adapter(raw, z)
    if not isinstance(new, Tensor):
        raise TypeError(f"{adapter_name(adapter)} returned {type(new).__name__}, expected the refined hidden state.")
    if new.shape != raw.shape:
        raise ValueError(
            f"{adapter_name(adapter)} returned shape {tuple(new.shape)} for a hidden state of shape "
            f"{tuple(raw.shape)}: an adapter's forward(h, z) must return h's own shape."
        )
    new = new.to(raw.dtype)  # autocast computes some of it in another
    return new if alpha == 0.0 else torch.lerp(new, old.to(new.dtype), alpha)


SCHEDULES: dict[str, Schedule] = {schedule.name: schedule for schedule in (Literal(), Repropagate(), Synchronous())}


def find_schedule(name: str) -> Schedule:
    """Return the schedule of that name.

    Raises:
        ValueError: There is none.
    """
    if not isinstance(name, str) or name not in SCHEDULES:
        raise ValueError(f"schedule must be one of {', '.join(map(repr, SCHEDULES))}, got {name!r}.")
    return SCHEDULES[name]
