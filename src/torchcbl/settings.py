"""How a loop is run: T, the solver, the gradient rule, the stopping rule, and what is an error."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from torchcbl.arguments import check_steps
from torchcbl.gradients import Bptt, Gradient, find_gradient
from torchcbl.halting import Halting, Never, check_halting
from torchcbl.refinement import Refinement, RefinementError, Status
from torchcbl.solvers import Picard, Solver, find_solver
from torchcbl.step_norm import differs_by_step, norms_at

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

SolverChoice = str | Solver
GradientChoice = str | Gradient
RaiseOn = str | Status | Sequence[str | Status]


@dataclass(frozen=True)
class Settings:
    """How a loop is run, unless a call says otherwise.

    Args:
        steps: T.
        solver: Chooses each next state.
        gradient: How the answer is differentiated.
        halting: Says which samples are done.
        raise_on: Names of the statuses that are an error.
    """

    steps: int
    solver: Solver
    gradient: Gradient
    halting: Halting
    raise_on: tuple[str, ...]

    @classmethod
    def make(
        cls,
        steps: int,
        solver: SolverChoice | None = None,
        gradient: GradientChoice | None = None,
        halting: Halting | None = None,
        raise_on: RaiseOn = (),
    ) -> Settings:
        """Check and complete what a user wrote.

        Raises:
            ValueError: A name is unknown or a number out of its range.
            TypeError: An argument has another type.
        """
        return cls(
            check_steps(steps),
            find_solver(solver),
            find_gradient(gradient),
            check_halting(halting),
            check_raise_on(raise_on),
        )

    def changed(
        self,
        steps: int | None = None,
        solver: SolverChoice | None = None,
        gradient: GradientChoice | None = None,
        halting: Halting | None = None,
        raise_on: RaiseOn | None = None,
    ) -> Settings:
        """Return what holds for one call; None leaves a setting as it is."""
        return replace(
            self,
            steps=self.steps if steps is None else check_steps(steps),
            solver=self.solver if solver is None else find_solver(solver),
            gradient=self.gradient if gradient is None else find_gradient(gradient),
            halting=self.halting if halting is None else check_halting(halting),
            raise_on=self.raise_on if raise_on is None else check_raise_on(raise_on),
        )

    @property
    def takes_every_step(self) -> bool:
        """Whether T steps are taken one after the other, whatever comes out."""
        return self.solver == Picard() and isinstance(self.halting, Never)

    @property
    def is_plain(self) -> bool:
        """Whether this is the plain loop: every step taken, and differentiated through all of them if at all."""
        return self.takes_every_step and (isinstance(self.gradient, Bptt) or not torch.is_grad_enabled())

    def describe(self) -> str:
        """Name what is not as in the plain loop; empty for that."""
        rules = {"solver": self.solver, "gradient": self.gradient, "halting": self.halting}
        plain = {"solver": Picard(), "gradient": Bptt(), "halting": Never()}
        return ", ".join(f"{name}={rule!r}" for name, rule in rules.items() if rule != plain[name])

    @property
    def needs_one_map(self) -> bool:
        """Whether G must be the same at every step."""
        return not isinstance(self.solver, Picard) or self.gradient.needs_one_map

    def check_map(self, net: ContextLoop) -> None:
        """Refuse to look for the fixed point of a map that changes from step to step.

        Raises:
            ValueError: Batch norm in the replayed part normalises otherwise at each step, or always by the batch.
        """
        if not self.needs_one_map or not net.has_batch_norm:
            return
        what = f"solver={self.solver!r}, gradient={self.gradient!r}"
        norms = norms_at(net.backbone, net.norm_names)
        for name, norm in norms.items():
            if norm.running_mean is None:
                raise ValueError(
                    f"{what} look for a fixed point of each sample by itself, but batch norm '{name}' has no running "
                    "statistics (track_running_stats=False) and mixes the samples at every step, also in eval mode: "
                    "build it with track_running_stats=True, replace it by group or layer norm, or use "
                    "solver='picard' with gradient='bptt', 'truncated' or 'checkpointed'."
                )
        mode = net.config.step_norm
        if differs_by_step(mode, norms.values()):
            raise ValueError(
                f"{what} look for a fixed point, but batch norm with step_norm={mode!r} makes each step another map"
                f"{' in training' if mode != 'per_step' else ''}: build the loop with step_norm='frozen', or use "
                "solver='picard' with gradient='bptt', 'truncated' or 'checkpointed'."
            )


def check_raise_on(statuses: RaiseOn) -> tuple[str, ...]:
    """Return the names of statuses.

    Raises:
        ValueError: There is no such status.
        TypeError: It is neither a name nor a sequence of names.
    """
    if not isinstance(statuses, (str, Status, Iterable)):
        raise TypeError(
            f"raise_on must name one status or several, as ('diverged', 'non_finite'), got {statuses!r}: () is for "
            "none."
        )
    given = [statuses] if isinstance(statuses, (str, Status)) else list(statuses)
    names = [one.name if isinstance(one, Status) else one for one in given]
    for name in names:
        if name not in Status.__members__:
            raise ValueError(f"raise_on must name statuses, {', '.join(map(repr, Status.__members__))}, got {name!r}.")
    return tuple(names)


def raise_if_asked(refinement: Refinement, settings: Settings) -> None:
    """Raise if samples ended in a status that is an error.

    Raises:
        RefinementError: They did.
    """
    for name in settings.raise_on:
        ended = (refinement.status == Status[name]).nonzero()[:, 0].tolist()
        if ended:
            first = ", ".join(map(str, ended[:10])) + (", ..." if len(ended) > 10 else "")
            raise RefinementError(
                f"{len(ended)} of {len(refinement.status)} samples ended as {name!r} after at most {settings.steps} "
                f"steps (samples {first}): {_ADVICE[Status[name]]}, or leave {name!r} out of raise_on.",
                refinement.status,
            )


_ADVICE = {
    Status.converged: "ask for what should not happen",
    Status.max_steps: "raise steps, loosen the tolerance, or choose another solver (docs/choosing.md)",
    Status.diverged: "use a damped or another solver, a larger alpha, or torchcbl.make_contractive",
    Status.non_finite: "look for NaN in their inputs; if the loop ran away, damp it or use another solver",
    Status.halted: "use halting=Tolerance(...) for fixed points",
}
