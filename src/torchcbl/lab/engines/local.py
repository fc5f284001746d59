"""Runs on this machine, each in processes of its own."""

from __future__ import annotations

from multiprocessing.connection import wait
from typing import TYPE_CHECKING

from torchcbl.lab.engines.base import Failure, Plan
from torchcbl.lab.engines.gpus import environment_of, visible_gpus
from torchcbl.lab.engines.team import Team, free_port, start_method
from torchcbl.lab.machine import num_cores
from torchcbl.lab.ranks import ranks_on
from torchcbl.lab.runs import Run

if TYPE_CHECKING:
    from torchcbl.lab.progress import Display


class LocalEngine:
    """Keep so many processes at work until all runs are done.

    Args:
        plan: How many runs at a time; by default one per GPU, or per core without any.

    Raises:
        ValueError: One run is to be spread over several machines.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.spread.nodes > 1:
            raise ValueError(
                f"--engine local is this machine alone, got --nodes {plan.spread.nodes}: take --engine ray or slurm."
            )
        self.plan = plan

    def start(self, num_runs: int) -> None:
        """See `Engine.start`."""
        self.context = start_method()
        self.gpus, cores = visible_gpus(), num_cores()
        self.jobs = self.plan.jobs_on(cores, len(self.gpus), num_runs)
        self.threads = self.plan.threads_of(cores, self.jobs)

    def work_off(self, runs: list[Run], display: Display) -> list[Failure]:
        """See `Engine.work_off`."""
        waiting, teams, failures = list(reversed(runs)), dict[Team, int](), list[Failure]()
        try:
            while waiting or teams:
                while waiting and len(teams) < self.jobs:
                    place = min(set(range(self.jobs)) - set(teams.values()))
                    team = self._begin(waiting.pop(), place)
                    teams[team] = place
                    display.start(team.run)
                wait([connection for team in teams for connection in team.connections], timeout=1.0)
                for team in list(teams):
                    for state in team.listen():
                        display.update(team.run, state)
                    if team.ended:
                        del teams[team]
                        problem = team.problem.reason if team.problem else None
                        display.finish(team.run, problem)
                        failures += [Failure(team.run, problem)] if problem else []
        finally:
            for team in teams:
                team.kill()
        return failures

    def _begin(self, run: Run, place: int) -> Team:
        spread = self.plan.spread
        port = free_port("127.0.0.1") if spread.size > 1 else 0
        environment = environment_of(self.gpus, spread.devices, place)
        try:
            return Team(run, self.threads, ranks_on(spread, port=port), self.context, environment=environment)
        except (OSError, EOFError) as error:  # of the server that starts processes, too
            reason = str(error) or type(error).__name__
            raise ChildProcessError(
                f"no process could be started for {run.name} ({reason}): is memory full, or the number of processes "
                f"limited? {self.jobs} runs at a time were asked for. What is finished is kept: run the same command "
                "again, with fewer --jobs."
            ) from error
