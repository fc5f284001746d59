"""Runs as jobs of Slurm, through submitit: preempted or lost, a run goes on from its checkpoint in the next job."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import submitit

from torchcbl.lab.engines.base import TRIES, Failure, Plan, goes_on
from torchcbl.lab.engines.journal import Ended, Journal
from torchcbl.lab.engines.slurm_job import SlurmRun, journal_of
from torchcbl.lab.engines.slurm_queue import Queue
from torchcbl.lab.machine import num_cores
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.worker import Problem

if TYPE_CHECKING:
    from torchcbl.lab.progress import Display

POLL_SECONDS = 0.5
REFUSED_SECONDS = 60.0
STORAGE_SECONDS = 15.0
"""How long a file may take to be seen from another machine."""


@dataclass
class _Ticket:
    """A run and its job."""

    run: Run
    job: submitit.Job[None]
    journal: Journal
    number: int = 1
    shown: bool = False
    ended: Ended | None = None
    silent_since: float | None = None

    def silent(self) -> float:
        """Say for how many seconds something that should be there has not come."""
        self.silent_since = self.silent_since or time.monotonic()
        return time.monotonic() - self.silent_since


class SlurmEngine:
    """Do runs as jobs of Slurm.

    The study's folder must be on storage that login node and compute nodes share. Jobs that a command leaves behind
    (killed, or its connection lost) go on, and the same command finds them; Ctrl-C cancels them.

    Args:
        plan: How many jobs at a time; by default all, since they wait in Slurm's queue.
        options: What to ask Slurm for; see `Queue`.
        tries: How often a run is begun, or gone on with, whose job is lost; >= 1.

    Raises:
        ValueError: An option is unknown, or has a wrong value.
        FileNotFoundError: There is no Slurm here.
    """

    def __init__(self, plan: Plan, options: Mapping[str, str] | None = None, tries: int = TRIES) -> None:
        self.plan, self.tries, self.queue = plan, tries, Queue(options or {})
        if self.queue.is_local and plan.spread.nodes > 1:
            raise ValueError(f"--slurm cluster=local is this machine alone, got --nodes {plan.spread.nodes}.")

    def start(self, num_runs: int) -> None:
        """See `Engine.start`."""
        cores, devices = num_cores(), self.plan.spread.devices
        self.jobs = self.plan.jobs or (min(cores, num_runs) if self.queue.is_local else num_runs)
        asked = self.queue.options.get("cpus_per_task")
        self.threads = self.plan.threads or (
            max(1, int(asked) // devices) if asked else self.plan.threads_of(cores, self.jobs)
        )
        self.needs = {"nodes": self.plan.spread.nodes, "tasks_per_node": 1, "cpus_per_task": self.threads * devices}

    def work_off(self, runs: list[Run], display: Display) -> list[Failure]:
        """See `Engine.work_off`."""
        tickets, failures = self._adopt(runs, display), list[Failure]()
        waiting = [(run, 1) for run in reversed(runs) if run.name not in tickets]
        at_once = self.jobs if self.queue.is_local else len(runs)
        again = 0.0
        try:
            while waiting or tickets:
                if time.monotonic() >= again:
                    room = min(at_once - len(tickets), len(waiting))
                    again = self._submit_or_wait([waiting.pop() for _ in range(room)], waiting, tickets, display)
                for ticket in list(tickets.values()):
                    self._listen(ticket, display)
                    ended = self._verdict(ticket)
                    if ended is None:
                        continue
                    del tickets[ticket.run.name]
                    if goes_on(ended.problem, ticket.number, self.tries):
                        display.note(f"{ticket.run.name} was lost: {ended.reason}; it goes on in another job")
                        waiting.append((ticket.run, ticket.number + 1))
                        continue
                    failures += self._finish(ticket, ended, display)
                    self.queue.remember(_out(runs), {name: ticket.job for name, ticket in tickets.items()})
                time.sleep(POLL_SECONDS)
        except BaseException:
            self.queue.cancel([ticket.job for ticket in tickets.values()])
            self.queue.remember(_out(runs), {})
            raise
        return failures

    def _adopt(self, runs: list[Run], display: Display) -> dict[str, _Ticket]:
        """Take over the jobs of an earlier command that are still there."""
        found = self.queue.find(_out(runs)) if runs else {}
        tickets = {run.name: _Ticket(run, found[run.name], journal_of(run)) for run in runs if run.name in found}
        if tickets:
            display.note(f"still with Slurm from an earlier command: {', '.join(tickets)}")
        return tickets

    def _submit_or_wait(
        self,
        chosen: list[tuple[Run, int]],
        waiting: list[tuple[Run, int]],
        tickets: dict[str, _Ticket],
        display: Display,
    ) -> float:
        """Submit runs; where Slurm refuses while others are at work, these wait. Returns when to submit again."""
        try:
            self._submit(chosen, tickets)
        except OSError as error:
            if not tickets:
                raise
            display.note(f"{error}; trying again in {REFUSED_SECONDS:.0f} s")
            waiting += reversed(chosen)
            return time.monotonic() + REFUSED_SECONDS
        return 0.0

    def _submit(self, chosen: list[tuple[Run, int]], tickets: dict[str, _Ticket]) -> None:
        if not chosen:
            return
        work = []
        for run, _ in chosen:
            journal_of(run).clear()
            absolute = replace(run, out=run.out.resolve(), data=run.data and run.data.resolve())
            work.append(SlurmRun(absolute, self.threads, self.plan.spread))
        for (run, number), job in zip(chosen, self.queue.submit(work, self.jobs, self.needs), strict=True):
            tickets[run.name] = _Ticket(run, job, journal_of(run), number)
        self.queue.remember(_out([chosen[0][0]]), {name: ticket.job for name, ticket in tickets.items()})

    def _listen(self, ticket: _Ticket, display: Display) -> None:
        """Show what a job has written."""
        for message in ticket.journal.read():
            if isinstance(message, Ended):
                ticket.ended = message
            elif isinstance(message, RunState):
                display.update(ticket.run, message)
            else:
                display.start(ticket.run)
                ticket.shown = True

    def _verdict(self, ticket: _Ticket) -> Ended | None:
        """Say how a run has ended; None while it has not. Files may take a while to come from another machine."""
        if ticket.ended is not None:
            if ticket.ended.problem is not None or ticket.run.record.exists():
                return ticket.ended
            if ticket.silent() < STORAGE_SECONDS:
                return None
            return Ended(Problem(f"it finished, but left no record in {ticket.run.out}: do all nodes share it?"))
        over = self.queue.over(ticket.job)
        if over is None:
            ticket.silent_since = None
            return None
        if ticket.silent() < (POLL_SECONDS if self.queue.is_local else STORAGE_SECONDS):
            return None
        reason = f"job {ticket.job.job_id} is {over} (its own words: {ticket.job.paths.stderr})"
        return Ended(Problem(reason, lost=over != "CANCELLED"))

    def _finish(self, ticket: _Ticket, ended: Ended, display: Display) -> list[Failure]:
        if not ticket.shown:
            display.start(ticket.run)
        ticket.journal.clear()
        reason = None
        if ended.problem is not None:
            reason = ended.reason + (f" ({self.tries} times)" if ended.problem.lost else "")
        display.finish(ticket.run, reason)
        return [Failure(ticket.run, reason)] if reason else []


def _out(runs: list[Run]) -> Path:
    return runs[0].out.resolve()
