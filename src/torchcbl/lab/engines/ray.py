"""Runs on a Ray cluster: as many at a time as it has room for, and a run whose node is lost goes on elsewhere."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import ray

from torchcbl.lab.engines.base import TRIES, Failure, Plan, goes_on
from torchcbl.lab.engines.ray_team import RayTeam
from torchcbl.lab.machine import num_cores
from torchcbl.lab.runs import Run

if TYPE_CHECKING:
    from torchcbl.lab.progress import Display


class RayEngine:
    """Do runs as tasks of a Ray cluster.

    The cluster is the one that RAY_ADDRESS names, else the one this machine belongs to, else one that is started on
    this machine alone for as long as the study takes. The study's folder must be on storage that all nodes share.

    Args:
        plan: How many runs at a time; by default one per GPU of the cluster, or per core without any.
        tries: How often a run is begun, or gone on with, whose worker or node is lost; >= 1.
    """

    def __init__(self, plan: Plan, tries: int = TRIES) -> None:
        self.plan, self.tries = plan, tries

    def start(self, num_runs: int) -> None:
        """See `Engine.start`: connects.

        Raises:
            ValueError: The cluster has no room for a single run.
            ConnectionError: The cluster that RAY_ADDRESS names is not there.
        """
        connect()
        spread = self.plan.spread
        resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
        cores = [int(found.get("CPU", 0)) for found in resources]
        gpus = int(sum(found.get("GPU", 0) for found in resources))
        self.jobs = self.plan.jobs_on(sum(cores), gpus, num_runs)
        self.threads = self.plan.threads or most_threads(cores, self.jobs * spread.nodes, spread.devices)
        self.needs = {"CPU": float(self.threads * spread.devices)}
        if gpus:
            self.needs["GPU"] = spread.devices if spread.size > 1 else gpu_share(gpus, self.jobs)
        fitting = sum(all(found.get(key, 0) >= need for key, need in self.needs.items()) for found in resources)
        if fitting < spread.nodes:
            raise ValueError(
                f"the Ray cluster has {fitting} nodes with {_shown(self.needs)}, but a run needs {spread.nodes}: "
                "ask for fewer --threads, --devices or --nodes, or add nodes."
            )

    def work_off(self, runs: list[Run], display: Display) -> list[Failure]:
        """See `Engine.work_off`."""
        waiting = [(run, 1) for run in reversed(runs)]
        teams: dict[RayTeam, tuple[Run, int]] = {}
        failures: list[Failure] = []
        try:
            while waiting or teams:
                while waiting and len(teams) < self.jobs:
                    run, number = waiting.pop()
                    teams[self._begin(run)] = run, number
                    display.start(run)
                ray.wait([reference for team in teams for reference in team.references], timeout=1.0)
                for team, (run, number) in list(teams.items()):
                    if team.is_overdue():
                        display.note(f"{run.name} waits for a node with {_shown(self.needs)} free")
                    for state in team.listen():
                        display.update(run, state)
                    if not team.ended:
                        continue
                    del teams[team]
                    if goes_on(team.problem, number, self.tries):
                        where = f" on {team.host}" if team.host else ""
                        display.note(f"{run.name} was lost{where}: {team.reason}; it goes on elsewhere")
                        waiting.append((run, number + 1))
                        continue
                    problem = self._outcome(team, run)
                    display.finish(run, problem)
                    failures += [Failure(run, problem)] if problem else []
        finally:
            for team in teams:
                team.kill()
        return failures

    def _begin(self, run: Run) -> RayTeam:
        absolute = replace(run, out=run.out.resolve(), data=run.data and run.data.resolve())
        return RayTeam(absolute, self.threads, self.plan.spread, self.needs)

    def _outcome(self, team: RayTeam, run: Run) -> str | None:
        """Say what is wrong with a run that has ended; None if nothing is."""
        if team.problem is not None:
            return team.reason + (f" ({self.tries} times)" if team.problem.lost else "")
        if not run.record.exists():
            return f"it finished on {team.host}, but left no record in {run.out}: do all nodes share that folder?"
        return None


def connect() -> None:
    """Connect to a cluster, or start one on this machine; a connection that is there already is kept.

    Raises:
        ValueError: RAY_ADDRESS is one of Ray's remote client.
        ConnectionError: The cluster that RAY_ADDRESS names is not there.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")  # what is left in the stream of a run that was lost
    named = os.environ.get("RAY_ADDRESS")
    if named and named.startswith("ray://"):
        raise ValueError(f"RAY_ADDRESS is {named}: run the command on a node of the cluster, with RAY_ADDRESS=auto.")
    try:
        ray.init(address=named or "auto", log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        if named:
            raise ConnectionError(f"no Ray cluster answers at RAY_ADDRESS={named}: {error}") from error
        ray.init(num_cpus=num_cores(), include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)


def most_threads(cores: Sequence[int], places: int, devices: int = 1) -> int:
    """Find the most threads with which the processes of all runs find room at once; at least 1.

    Args:
        cores: Cores of each node.
        places: On how many machines runs are at work at a time, a machine with two runs counted twice.
        devices: Processes of a run on each machine.

    Example:
        >>> most_threads([8], places=3), most_threads([5, 5, 5], places=2), most_threads([2], places=7)
        (2, 5, 1)
    """
    sizes = range(max(cores, default=1), 1, -1)
    return next((size for size in sizes if sum(count // (size * devices) for count in cores) >= places), 1)


def gpu_share(gpus: int, jobs: int) -> float:
    """Say how much of a GPU each of so many runs gets: a whole one, or an even part.

    Example:
        >>> gpu_share(gpus=4, jobs=3), gpu_share(gpus=2, jobs=3)
        (1.0, 0.5)
    """
    return 1.0 / math.ceil(jobs / gpus)


def _shown(needs: dict[str, float]) -> str:
    return " and ".join(f"{need:g} {key}" for key, need in needs.items())
