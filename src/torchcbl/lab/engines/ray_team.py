"""One run on a Ray cluster: a place for it, a task on each of its machines, and what comes back from them."""

from __future__ import annotations

import os
import time
import traceback
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from torchcbl.lab.engines.ray_member import meet, member
from torchcbl.lab.engines.team import LostError, RunError
from torchcbl.lab.ranks import Spread
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.worker import Problem

AFTERMATH_SECONDS = 5.0
PATIENCE_SECONDS = 60.0


class RayTeam:
    """Ask the cluster for a place for a run, and train it there.

    Args:
        run: What to train; its paths are absolute.
        threads: Threads of each process.
        spread: Over how many devices and machines.
        needs: What it needs on each machine, as {"CPU": 2, "GPU": 1}.
    """

    def __init__(self, run: Run, threads: int, spread: Spread, needs: dict[str, float]) -> None:
        self.run, self.threads, self.spread, self.needs = run, threads, spread, needs
        self.problem: Problem | None = None
        self.host: str | None = None
        self._overdue = time.monotonic() + PATIENCE_SECONDS
        self._environment = {key: value for key, value in os.environ.items() if key.startswith("TORCHCBL_")}
        strategy = "STRICT_SPREAD" if spread.nodes > 1 else "PACK"
        self._group = placement_group([needs] * spread.nodes, strategy=strategy)
        self._meeting: Any = self._remote(meet, 0, num_cpus=0).remote() if spread.nodes > 1 else None
        self._streams: list[Any] = []
        if self._meeting is None:
            self._begin(None)

    @property
    def references(self) -> list[Any]:
        """What to wait on."""
        return [self._meeting] if self._meeting is not None else self._streams

    @property
    def ended(self) -> bool:
        """Whether nothing of it is at work."""
        return not self.references

    @property
    def reason(self) -> str:
        """What went wrong; nothing if nothing did."""
        return self.problem.reason if self.problem else ""

    def is_overdue(self) -> bool:
        """Whether no node has taken it up for long; true only once."""
        if self.host is not None or time.monotonic() < self._overdue:
            return False
        self._overdue = float("inf")
        return True

    def listen(self) -> list[RunState]:
        """Take what has been sent."""
        states: list[RunState] = []
        if self._meeting is not None:
            self._meet()
        for stream in list(self._streams):
            states += self._take(stream)
        if self.problem is not None:
            if not self.problem.lost and self._streams:
                self._look_for_the_dead()
            self.kill()
        elif self.ended:
            remove_placement_group(self._group)
        return states

    def kill(self) -> None:
        """End what is at work."""
        for reference in self.references:
            ray.cancel(reference, force=True)
        remove_placement_group(self._group)
        self._streams, self._meeting = [], None

    def _remote(self, function: Any, node: int, **options: object) -> Any:
        place = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=node)
        return ray.remote(function).options(scheduling_strategy=place, max_retries=0, **options)

    def _begin(self, place: tuple[str, int] | None) -> None:
        needs = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0)}
        for node in range(self.spread.nodes):
            task = self._remote(member, node, num_returns="streaming", **needs)
            self._streams.append(task.remote(self.run, self.threads, self.spread, node, place, self._environment))

    def _meet(self) -> None:
        if not ray.wait([self._meeting], timeout=0)[0]:
            return
        try:
            place = ray.get(self._meeting)
        except RayError as error:
            self.problem = _problem(error)
        else:
            self._meeting = None
            self._begin(place)

    def _take(self, stream: Any) -> list[RunState]:
        states: list[RunState] = []
        try:
            while ray.wait([stream], timeout=0)[0]:
                message = ray.get(next(stream))
                if isinstance(message, RunState):
                    states.append(message)
                else:
                    self.host = self.host or message
        except StopIteration:
            self._streams.remove(stream)
        except RayError as error:
            self._streams.remove(stream)
            found = _problem(error)
            self.problem = found if self.problem is None or found.lost else self.problem
        return states

    def _look_for_the_dead(self) -> None:
        """Where a machine was lost, the others complain of their lost connection: that is not what went wrong."""
        for stream in ray.wait(self._streams, num_returns=len(self._streams), timeout=AFTERMATH_SECONDS)[0]:
            self._take(stream)


def _problem(error: RayError) -> Problem:
    """Tell a run's own fault from the loss of its worker or node."""
    if not isinstance(error, RayTaskError):
        return Problem(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}", lost=True)
    cause = error.cause
    if isinstance(cause, (RunError, LostError)):
        return Problem(str(cause), lost=isinstance(cause, LostError))
    return Problem(traceback.format_exception_only(cause)[-1].strip())
