"""What a job of Slurm does for a run, on each of its machines."""

from __future__ import annotations

import multiprocessing
import platform
import signal
from dataclasses import dataclass

import submitit
from submitit.helpers import DelayedSubmission

from torchcbl.lab.engines.journal import Begun, Ended, Journal
from torchcbl.lab.engines.team import LostError, RunError, Team, follow, free_port
from torchcbl.lab.ranks import Spread, ranks_on
from torchcbl.lab.runs import Run
from torchcbl.lab.worker import Problem

SLURMS_OWN = (signal.SIGINT, signal.SIGTERM, signal.SIGCONT, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that reach every process of a job, and that its first one deals with."""
FIRST_PORT, NUM_PORTS = 20000, 10000


def journal_of(run: Run) -> Journal:
    """Where the job of a run says how far it is."""
    return Journal(run.out / "slurm" / f"{run.name}.jsonl")


@dataclass(frozen=True)
class SlurmRun:
    """A run as submitit takes it: called in the job, and submitted anew when the job is preempted or out of time.

    Args:
        run: What to train; its paths are absolute.
        threads: Threads of each process.
        spread: Over how many devices and machines.
    """

    run: Run
    threads: int
    spread: Spread

    def __call__(self) -> None:
        """Train the run, or this machine's part of it.

        Raises:
            RunError: It failed.
            LostError: A process was killed.
        """
        environment = submitit.JobEnvironment()
        journal = journal_of(self.run)
        if environment.node == 0:
            journal.append(Begun(platform.node()))
        ranks = ranks_on(self.spread, environment.node, *self._place(environment))
        # spawned, not forked from a server, which would not know the job's variables
        team = Team(self.run, self.threads, ranks, multiprocessing.get_context("spawn"), SLURMS_OWN)
        try:
            for state in follow(team):
                journal.append(state)
        except (RunError, LostError) as error:
            journal.append(Ended(Problem(str(error), lost=isinstance(error, LostError))))
            raise
        if environment.node == 0:
            journal.append(Ended())

    def checkpoint(self) -> DelayedSubmission:
        """Say to submitit what to do when the job comes back: the same, since the run goes on from its checkpoint."""
        return DelayedSubmission(self)

    def _place(self, environment: submitit.JobEnvironment) -> tuple[str, int]:
        """Where the processes of a run meet: every machine must come to the same port by itself."""
        if self.spread.nodes == 1:
            return "127.0.0.1", free_port("127.0.0.1")
        number = int("".join(digit for digit in environment.job_id if digit.isdigit()))
        return environment.hostnames[0], FIRST_PORT + number % NUM_PORTS
