"""One kind of measure of one run after the other, or several side by side."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from torchcbl.lab.data import load_dataset
from torchcbl.lab.machine import num_cores
from torchcbl.lab.measures.base import Ground, Measure, Subject
from torchcbl.lab.measures.kinds import find_kind
from torchcbl.lab.measures.store import Result, write_result
from torchcbl.lab.processes import end_with_parent, use_threads
from torchcbl.lab.records import read_record
from torchcbl.lab.runs import Run


@dataclass(frozen=True)
class Task:
    """One kind of measure of one run.

    Args:
        folder: The study's.
        data: Folder of the data.
        samples: As in `measure_study`.
        kind: The kind.
        run: The run.
    """

    folder: Path
    data: Path | None
    samples: int | None
    kind: str
    run: Run


def work_off(tasks: Sequence[Task], ground: Ground, jobs: int) -> Iterator[str]:
    """Measure, and write each result as soon as it is there.

    Args:
        tasks: What is to be measured.
        ground: What they are measured on.
        jobs: How many at a time; each gets cores // jobs threads.

    Yields:
        A line for each.

    Raises:
        ChildProcessError: A process was killed; what it had not finished is measured by the next call.
    """
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield _measure(task, ground)
        return
    threads = max(1, num_cores() // jobs)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin, (threads,)) as pool:
        try:
            waiting = [pool.submit(_measure_alone, task) for task in tasks]
            for done in as_completed(waiting):
                yield done.result()
        except (BrokenProcessPool, BlockingIOError) as error:
            pool.shutdown(wait=False, cancel_futures=True)
            raise ChildProcessError(
                f"a process that measured was killed, or could not be started, with {jobs} at work (memory full?): "
                f"{error} What is finished is kept: run the same command again, with fewer --jobs if memory is short."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _begin(threads: int) -> None:
    """Get a process ready that measures; it ends with the one that started it, whatever ends that."""
    use_threads(threads)
    end_with_parent()


def _measure_alone(task: Task) -> str:
    """Measure in a process of its own, which loads the data once."""
    if task.folder not in _kept:
        _kept[task.folder] = Ground(task.run.recipe, load_dataset(task.run.recipe, task.data), task.data, task.samples)
    return _measure(task, _kept[task.folder])


_kept: dict[Path, Ground] = {}


def _measure(task: Task, ground: Ground) -> str:
    kind: Measure = find_kind(task.kind)
    found: Result = kind.measure(Subject(task.run, read_record(task.run.record)), ground)
    write_result(task.folder, found)
    return f"{task.kind}, {task.run.name}: {kind.headline(found)} ({found.about.seconds:.0f} s)"
