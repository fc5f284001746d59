"""The processes of one run on one machine: mostly one; one for each device where a run is spread over several."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING

from torchcbl.lab.ranks import Rank
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.worker import NOTHING, Done, Problem, work

if TYPE_CHECKING:  # Windows has no ForkServerContext
    from multiprocessing.context import ForkServerContext, SpawnContext

PRELOADED = ["torchcbl.lab.training", "sklearn.datasets"]
LEAVING_SECONDS = 10.0


class RunError(RuntimeError):
    """A run has failed by its own fault."""


class LostError(RuntimeError):
    """A run has lost its process; it may go on elsewhere."""


@dataclass(frozen=True)
class _Member:
    process: BaseProcess
    connection: Connection


class Team:
    """Start the processes of a run on this machine, and hear what they send.

    Args:
        run: What to train.
        threads: Threads of each process.
        ranks: Which of the run's processes to start here.
        context: How processes start (`start_method`).
        ignored: Signals that the processes are to ignore.
        environment: What else they are to find in their environment.
    """

    def __init__(
        self,
        run: Run,
        threads: int,
        ranks: Sequence[Rank],
        context: ForkServerContext | SpawnContext,
        ignored: Sequence[int] = (signal.SIGINT,),
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        self.run = run
        self.problem: Problem | None = None
        self._members: list[_Member] = []
        self._done: set[int] = set()
        try:
            for rank in ranks:
                receiver, sender = context.Pipe(duplex=False)
                name = run.name if rank.spread.size == 1 else f"{run.name}-rank{rank.number}"
                given = (run, threads, sender, rank, ignored, dict(environment))
                process = context.Process(target=work, args=given, name=name)
                process.start()
                sender.close()  # the process holds the only end now: its death ends the connection
                self._members.append(_Member(process, receiver))
        except BaseException:
            self.kill()  # those that have started would wait for the others
            raise
        self._first = self._members[0]

    @property
    def connections(self) -> list[Connection]:
        """What to wait on."""
        return [member.connection for member in self._members]

    @property
    def ended(self) -> bool:
        """Whether no process is left."""
        return not self._members

    def listen(self) -> list[RunState]:
        """Take what has been sent; a closed connection is a process's end, and one that fails ends all."""
        states: list[RunState] = []
        for member in list(self._members):
            try:
                while member.connection.poll():
                    message = member.connection.recv()
                    if isinstance(message, RunState):
                        states.append(message)
                    elif isinstance(message, Done):
                        self._done.add(id(member))
                    else:
                        member.process.join(LEAVING_SECONDS)  # it still writes its log
                        self.problem = self.problem or message
            except (EOFError, ConnectionError):
                self._leave(member)
        if self.problem is not None:
            self.kill()
        elif self._members and self._first not in self._members:
            self._part()
        return states

    def kill(self) -> None:
        """End what is left."""
        for member in self._members:
            self._blame(member)
        for member in self._members:
            member.process.kill()
        for member in self._members:
            member.process.join()
            member.connection.close()
        self._members.clear()

    def _leave(self, member: _Member) -> None:
        member.connection.close()
        member.process.join()
        self._members.remove(member)
        self._blame(member)
        if id(member) not in self._done and self.problem is None:  # Lightning makes SIGTERM an exit with code 0
            self.problem = _lost(member.process.exitcode)

    def _blame(self, member: _Member) -> None:
        """Where a process was killed, the others complain of their lost connection: that is not what went wrong."""
        if (member.process.exitcode or 0) < 0:
            self.problem = _lost(member.process.exitcode)

    def _part(self) -> None:
        """The first process, which writes all there is to write, has done so: the others have nothing left to do."""
        for member in self._members:
            member.process.join(LEAVING_SECONDS)
        self.kill()


def _lost(code: int | None) -> Problem:
    return Problem(f"its process ended before the run, with code {code} (memory full, or killed?)", lost=True)


def follow(team: Team) -> Iterator[RunState]:
    """Give the states of a run as they come, until it has ended.

    Raises:
        RunError: It failed.
        LostError: It lost a process.
    """
    try:
        while not team.ended:
            wait(team.connections, timeout=1.0)
            yield from team.listen()
    finally:
        team.kill()
    if team.problem is not None:
        raise (LostError if team.problem.lost else RunError)(team.problem.reason)


def start_method() -> ForkServerContext | SpawnContext:
    """Choose how processes start: from a server that has imported the heavy modules once, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # a run that is ended by Ctrl-C leaves its semaphores to the tracker, which frees them and would say so
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.resource_tracker.ensure_running()  # which lets SIGINT through again, so it goes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # Ctrl-C would end it as it imports
    try:
        multiprocessing.forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def free_port(address: str = "") -> int:
    """Find a port that nobody listens on at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as found:
        found.bind((address, 0))
        port: int = found.getsockname()[1]
        return port
