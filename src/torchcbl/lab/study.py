"""A study: arms x seeds, several runs at a time, each in a process of its own, none of them twice."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import multiprocessing.forkserver
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.machine import num_cores
from torchcbl.lab.progress import Display
from torchcbl.lab.recipe import ARM_NAMES, Recipe, differences, read_recipe
from torchcbl.lab.records import read_records
from torchcbl.lab.runs import Run, RunState, all_runs
from torchcbl.lab.worker import work

PRELOADED = ["torchcbl.lab.training", "sklearn.datasets"]


@dataclass(frozen=True)
class Failure:
    """A run that did not finish.

    Args:
        run: The run.
        reason: The last line of what went wrong.
    """

    run: Run
    reason: str


def run_study(recipe: Recipe, out: Path, display: Display, data: Path | None = None, jobs: int = 1) -> list[Failure]:
    """Do all runs of a study that are not done yet.

    Args:
        recipe: What to do.
        out: The study's folder; runs that have a record there are not repeated, begun ones go on.
        display: Shows how far it has come.
        data: Folder of the data set; none uses `TORCHCBL_DATA` or the cache.
        jobs: Runs at a time, >= 1; each gets cores // jobs threads. The number of threads can change the last bits
            of a result, so keep `jobs` over an interruption.

    Returns:
        The runs that failed; the others are finished.

    Raises:
        ValueError: `out` holds another study or a damaged record, or `jobs` or a data file is wrong.
        OSError: `out` cannot be written, the data is not there, or another process is at work in `out`.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be >= 1, got {jobs}: the number of runs at a time.")
    with locked(out):
        claim(recipe, out)
        runs = all_runs(recipe, out, data)
        pending = [run for run in runs if not run.record.exists()]
        for run in runs:
            if run not in pending:
                run.checkpoint.unlink(missing_ok=True)  # a kill between the record and this left it behind
        if not pending:
            return []
        with display:
            display.begin(len(runs), len(runs) - len(pending))
            pool = _Pool(pending, jobs, display)
            prepare(recipe, data, display)
            return pool.work_off()


def claim(recipe: Recipe, out: Path) -> None:
    """Make `out` the folder of this study: save the recipe, with the arms and seeds of earlier commands.

    Raises:
        ValueError: `out` holds another study; the message names the keys that differ.
    """
    path = out / "recipe.toml"
    known = read_recipe(path) if path.exists() else recipe
    for record in read_records(out):
        _compare(record.recipe, recipe, f"record {record.name} in {out}")
    _compare(known.as_dict(), recipe, str(out))
    arms = tuple(arm for arm in ARM_NAMES if arm in known.arms + recipe.arms)
    merged = dataclasses.replace(known, arms=arms, seeds=max(known.seeds, recipe.seeds))
    write_atomically(path, merged.as_toml())


def _compare(found: Mapping[str, object], recipe: Recipe, where: str) -> None:
    differing = differences(found, recipe)
    if differing:
        raise ValueError(f"{where} belongs to another study: {'; '.join(differing)}. Choose another --out.")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other studies out of the folder `out`; the lock dies with this process.

    Raises:
        BlockingIOError: Another process is at work there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            import fcntl
        except ImportError:  # Windows: two studies in one folder are then not noticed
            yield
            return
        lock = stack.enter_context((out / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another torchcbl is at work in {out}: wait until it has ended, or choose another --out."
            ) from error
        yield


def prepare(recipe: Recipe, data: Path | None, display: Display) -> None:
    """Load the data once, so that a fault shows once, and what is downloaded or decoded lies ready for the runs.

    Raises:
        ValueError: A file is damaged, or `validation_size` does not fit.
        OSError: The data is not there.
    """
    from torchcbl.lab.data import load_dataset

    load_dataset(recipe, data, progress=display.preparing)


@dataclass(frozen=True)
class _Worker:
    run: Run
    process: BaseProcess
    connection: Connection


class _Pool:
    """Keep so many processes at work until all runs are done."""

    def __init__(self, runs: list[Run], jobs: int, display: Display) -> None:
        self.context = start_method()
        self.waiting = list(reversed(runs))
        self.jobs, self.threads = jobs, max(1, num_cores() // jobs)
        self.display = display
        self.workers: list[_Worker] = []
        self.failures: list[Failure] = []

    def work_off(self) -> list[Failure]:
        """Do all runs; on any way out of here no process is left."""
        try:
            while self.waiting or self.workers:
                while self.waiting and len(self.workers) < self.jobs:
                    self._start(self.waiting.pop())
                wait([worker.connection for worker in self.workers], timeout=1.0)
                for worker in list(self.workers):
                    self._listen(worker)
        finally:
            for worker in self.workers:
                worker.process.kill()
                worker.process.join()
        return self.failures

    def _start(self, run: Run) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        process = self.context.Process(target=work, args=(run, self.threads, sender), name=run.name)
        process.start()
        sender.close()  # the worker holds the only end now: its death ends the connection
        self.workers.append(_Worker(run, process, receiver))
        self.display.start(run)

    def _listen(self, worker: _Worker) -> None:
        """Take what a worker has sent; a closed connection is its end."""
        problem: str | None = None
        try:
            while worker.connection.poll():
                message = worker.connection.recv()
                if isinstance(message, RunState):
                    self.display.update(worker.run, message)
                else:
                    problem = message.reason
        except (EOFError, ConnectionError):
            self._finish(worker, problem)
        else:
            if problem is not None:
                self._finish(worker, problem)

    def _finish(self, worker: _Worker, problem: str | None) -> None:
        worker.connection.close()
        worker.process.join()
        self.workers.remove(worker)
        if worker.process.exitcode != 0 and problem is None:
            problem = f"its process ended with code {worker.process.exitcode} (memory full, or killed?)"
        if problem is not None:
            self.failures.append(Failure(worker.run, problem))
        self.display.finish(worker.run, problem)


def start_method() -> ForkServerContext | SpawnContext:
    """Choose how processes start: from a server that has imported the heavy modules once, where there is one."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # a run that is ended by Ctrl-C leaves its semaphores to the tracker, which frees them and would say so
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")
    context.set_forkserver_preload(PRELOADED)
    multiprocessing.forkserver.ensure_running()
    return context
