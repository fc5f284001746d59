"""The process of one run, or of one of its ranks: trains, sends its state, and never outlives who started it."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import MappingProxyType

from torchcbl.lab.locks import hold
from torchcbl.lab.processes import end_with_parent, use_threads
from torchcbl.lab.ranks import ALONE, Rank
from torchcbl.lab.runs import Run

LOCK_SECONDS = 60.0
NOTHING: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class Problem:
    """Why a run failed.

    Args:
        reason: The last line of its traceback, or how its process ended.
        lost: Whether its process went away from outside, so that the run may go on elsewhere.
    """

    reason: str
    lost: bool = False


class Done:
    """The run is done."""


def work(
    run: Run,
    threads: int,
    connection: Connection,
    rank: Rank = ALONE,
    ignored: Sequence[int] = (signal.SIGINT,),
    environment: Mapping[str, str] = NOTHING,
) -> None:
    """Train one run in this process; its `RunState`s go to the connection, and at its end `Done` or a `Problem`.

    Args:
        run: What to train.
        threads: Threads for torch.
        connection: Where to send to.
        rank: Which of the run's processes this is.
        ignored: Signals that the one who started this process deals with: Ctrl-C reaches every process.
        environment: What is to be in its environment; CUDA_VISIBLE_DEVICES counts, as nothing has used a GPU yet.
    """
    os.environ.update(environment)
    _ignore(ignored)
    end_with_parent()
    try:
        _print_into(run)
        with _alone(run) if rank.leads else contextlib.nullcontext():
            if not run.record.exists():  # or who was taken for dead has finished it meanwhile
                _train(run, threads, connection, rank)
    except Exception as error:
        connection.send(Problem(traceback.format_exception_only(error)[-1].strip()))
        traceback.print_exc()  # last, because a full disk may refuse it
        sys.exit(1)
    connection.send(Done())


def _ignore(signals: Sequence[int]) -> None:
    """Let signals pass by, also where Lightning puts handlers of its own in place of ours."""
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)


def _train(run: Run, threads: int, connection: Connection, rank: Rank) -> None:
    began = "goes on from its checkpoint" if run.checkpoint.exists() else "begins"
    gpus = f", GPU {shown}" if (shown := os.environ.get("CUDA_VISIBLE_DEVICES")) else ""
    print(f"{run.name} {began} on {platform.node()}, process {os.getpid()}, rank {rank.number}{gpus}", flush=True)
    use_threads(threads)
    run.train(connection.send, rank)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Keep a second process of the same run out, as of a machine that was taken for dead."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold(run.folder / ".lock", LOCK_SECONDS))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"another process has been at work in {run.folder} for {LOCK_SECONDS:.0f} s: end it, then run again."
            ) from error
        yield


def _print_into(run: Run) -> None:
    """Send what this process prints, from C too, into the run's log."""
    run.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
