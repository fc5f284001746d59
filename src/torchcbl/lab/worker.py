"""The process of one run: trains, sends its state to the study, and never outlives it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection

from torchcbl.lab.runs import Run


@dataclass(frozen=True)
class Problem:
    """Why a run failed: the last line of its traceback."""

    reason: str


def work(run: Run, threads: int, connection: Connection) -> None:
    """Train one run in this process; its `RunState`s go to the connection, a `Problem` if it fails.

    Args:
        run: What to train.
        threads: Threads for torch.
        connection: Where to send to.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the study ends its own
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        _print_into(run)
        import torch

        from torchcbl.lab.training import train

        torch.set_num_threads(threads)
        train(run, connection.send)
    except Exception as error:
        connection.send(Problem(traceback.format_exception_only(error)[-1].strip()))
        traceback.print_exc()  # last, because a full disk may refuse it
        sys.exit(1)


def _die_with_parent() -> None:
    """Wait for the study's end, even by SIGKILL, and end at once: a checkpoint is whole at any moment."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _print_into(run: Run) -> None:
    """Send what this process prints, from C too, into the run's log."""
    run.folder.mkdir(parents=True, exist_ok=True)
    log = os.open(run.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(log, stream.fileno())
    os.close(log)
