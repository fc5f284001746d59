"""Doing a sweep: all runs of all settings in one pool, none of them twice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torchcbl.lab.engines.base import Engine, Failure
from torchcbl.lab.progress import Display
from torchcbl.lab.ranks import Spread
from torchcbl.lab.study import locked, unfinished
from torchcbl.lab.sweep.feasible import checked
from torchcbl.lab.sweep.plan import Sweep, claim, load, save


def run_sweep(
    sweep: Sweep, out: Path, display: Display, engine: Engine, data: Path | None = None
) -> tuple[Sweep, list[Failure]]:
    """Do all runs of a sweep that are not done yet; no test data are looked at.

    Args:
        sweep: What to try.
        out: The sweep's folder; settings and seeds of earlier sweeps over the same keys there are gone on with.
        display: Shows how far it has come.
        engine: What does the runs (`torchcbl.lab.engines.make_engine`).
        data: Folder of the data set; none uses `TORCHCBL_DATA` or the cache.

    Returns:
        The sweep as it now stands in the folder, with what cannot be had; and the runs that failed.

    Raises:
        ValueError: `out` holds another sweep or a study, a damaged record, or one that was trained in another number of
            processes; the arm or all settings are impossible; a data file is wrong.
        OSError: `out` cannot be written, the data is not there, or another process is at work in `out`.
    """
    with locked(out), display:
        sweep = checked(claim(sweep, out), out, data, display.preparing)
        save(sweep, out)
        for label, reason in sweep.refused.items():
            display.note(f"{label} cannot be had: {reason}")
        trials = sweep.trials(out, data)
        for trial in trials:
            found = trial.read()
            if found is not None:
                engine.plan.spread.check(Spread.of(found.machine), f"record {trial.name} in {out}")
        pending = unfinished(trials)
        display.note(
            f"{len(trials)} runs: settings of {sweep.arm}: {len(sweep.possible)}, of {sweep.plain}: "
            f"{len(sweep.references)}, seeds of each: {sweep.seeds}"
        )
        display.begin(len(trials), len(trials) - len(pending))
        failures: list[Failure] = []
        if pending:
            engine.start(len(trials))
            failures = engine.work_off(list(pending), display)
        sweep = replace(sweep, ended=True)
        save(sweep, out)
        return sweep, failures


def judge_by(by: str, out: Path) -> None:
    """Change the score that the sweep of a folder is judged by, for this and every later look.

    Raises:
        ValueError: It is none of `CRITERIA`, or the sweep is damaged.
        OSError: Another process is at work there, or the folder cannot be written.
    """
    with locked(out):
        save(replace(load(out), by=by), out)
