"""What an engine is: it does the runs of a study, several at a time, wherever they are to run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from torchcbl.lab.ranks import Spread
from torchcbl.lab.runs import Run
from torchcbl.lab.worker import Problem

if TYPE_CHECKING:
    from torchcbl.lab.progress import Display


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Args:
        run: The run.
        reason: The last line of what went wrong.
    """

    run: Run
    reason: str


@dataclass(frozen=True)
class Plan:
    """How many runs at a time, and on how much each of them.

    Args:
        jobs: Runs at a time, >= 1; None leaves it to the engine.
        threads: Threads of each process, >= 1; None shares out the cores. Their number can change the last bits of a
            result.
        spread: Over how many devices and machines one run is spread.

    Raises:
        ValueError: A number is below 1.
    """

    jobs: int | None = None
    threads: int | None = None
    spread: Spread = field(default_factory=Spread)

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise ValueError(f"jobs must be >= 1, got {self.jobs}: the number of runs at a time.")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be >= 1, got {self.threads}: those of each process.")

    def jobs_on(self, cores: int, gpus: int, num_runs: int) -> int:
        """Say how many runs go on at a time: as many as was asked for, else one per GPU, or per core without any.

        Example:
            >>> Plan().jobs_on(cores=8, gpus=0, num_runs=20), Plan().jobs_on(cores=8, gpus=2, num_runs=20)
            (8, 2)
            >>> Plan(spread=Spread(devices=4)).jobs_on(cores=8, gpus=0, num_runs=20)
            2
        """
        return self.jobs or min(num_runs, max(1, (gpus or cores) // self.spread.size))

    def threads_of(self, cores: int, jobs: int) -> int:
        """Share the cores of one machine out among the processes that run there at a time.

        Example:
            >>> Plan().threads_of(cores=8, jobs=3)
            2
        """
        return self.threads or max(1, cores // (jobs * self.spread.devices))


TRIES = 4
"""How often a run is begun, or gone on with, that is lost each time."""


def goes_on(problem: Problem | None, number: int, tries: int) -> bool:
    """Say whether a run is to be taken up again elsewhere: where it was lost, but not for ever.

    Args:
        problem: How the run ended; None if it ended well.
        number: Which try that was, from 1.
        tries: How many there may be.

    Example:
        >>> lost, failed = Problem("its node went away", lost=True), Problem("ValueError: ...")
        >>> goes_on(lost, 1, tries=2), goes_on(lost, 2, tries=2), goes_on(failed, 1, tries=2)
        (True, False, False)
    """
    return problem is not None and problem.lost and number < tries


class Engine(Protocol):
    """Do the runs of a study.

    A run that fails by its own fault is a `Failure`; the others go on. On any way out of `work_off` nothing of it is
    left at work.
    """

    @property
    def plan(self) -> Plan:
        """What it was asked for."""

    def start(self, num_runs: int) -> None:
        """Get ready, while the data is not loaded yet; settle how many runs go on at a time.

        Args:
            num_runs: How many runs the whole study has.

        Raises:
            ValueError: It cannot do what is asked for.
            OSError: What it runs on is not there.
        """

    def work_off(self, runs: list[Run], display: Display) -> list[Failure]:
        """Do some runs, from their checkpoints where there are any, and return those that failed."""
