"""Slurm's queue through submitit: submit jobs, look after them, cancel them, find those of an earlier command."""

from __future__ import annotations

import difflib
import json
import math
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import SlurmExecutor

from torchcbl.files import write_atomically
from torchcbl.lab.engines.slurm_job import SlurmRun

CLUSTERS = ("slurm", "local")
MINUTES = 240
"""Time limit of a job where none is asked for; a run that needs longer goes on in the next one."""
MAX_TIMEOUTS = 50
LOOK_SECONDS = 5.0
OVER = frozenset(("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED"))
OVER |= {"NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"}
_GENERAL = {"time": "timeout_min", "timeout_min": "timeout_min", "mem_gb": "mem_gb"}
_GENERAL |= {name: name for name in ("cpus_per_task", "gpus_per_node", "nodes", "tasks_per_node", "name")}
_OURS = ("nodes", "tasks_per_node", "ntasks_per_node", "array_parallelism")


class Queue:
    """Submit runs as jobs, and say what has become of them.

    Args:
        options: What to ask Slurm for, by name, as `{"partition": "gpu", "time": "60", "mem_gb": "8"}`; `cluster` is
            "slurm", or "local" for jobs of submitit's local executor, which needs no Slurm.

    Raises:
        ValueError: An option is unknown, or has a wrong value.
        FileNotFoundError: There is no Slurm here.
    """

    def __init__(self, options: Mapping[str, str]) -> None:
        self.cluster = options.get("cluster", "slurm")
        if self.cluster not in CLUSTERS:
            raise ValueError(f"--slurm cluster must be one of {', '.join(CLUSTERS)}, got '{self.cluster}'.")
        self.options = {key: value for key, value in options.items() if key != "cluster"}
        self._parameters = dict(_parameter(key, value) for key, value in self.options.items())
        if self.cluster == "slurm" and shutil.which("sbatch") is None:
            raise FileNotFoundError(
                "there is no Slurm here (no sbatch): run the command on a login node of the cluster, or try "
                "--slurm cluster=local, which runs the jobs on this machine."
            )
        self._states: dict[str, str] = {}
        self._looked = self._answered = -math.inf
        self._submitted: dict[str, float] = {}

    @property
    def is_local(self) -> bool:
        """Whether jobs run on this machine, without Slurm."""
        return self.cluster == "local"

    def submit(self, runs: Sequence[SlurmRun], jobs: int, needs: Mapping[str, int]) -> list[submitit.Job[None]]:
        """Submit runs, as one array of jobs.

        Args:
            runs: What to do.
            jobs: How many of them may be at work at a time.
            needs: What each asks for, where the options do not say otherwise.

        Raises:
            OSError: Slurm refuses; the message is its own.
        """
        folder = runs[0].run.out / "slurm"
        extra = {"slurm_array_parallelism": jobs}
        if needs.get("nodes", 1) > 1:  # one machine's failure is to end all
            extra["slurm_srun_args"] = ["--kill-on-bad-exit=1"]  # type: ignore[assignment]
        executor = submitit.AutoExecutor(
            folder, self.cluster, slurm_max_num_timeout=MAX_TIMEOUTS, local_max_num_timeout=MAX_TIMEOUTS
        )
        name = f"torchcbl-{runs[0].run.recipe.name}"
        executor.update_parameters(**{"timeout_min": MINUTES, "name": name, **needs, **extra, **self._parameters})
        try:
            with executor.batch():
                submitted = [executor.submit(run) for run in runs]
        except (subprocess.CalledProcessError, FailedJobError) as error:
            raise OSError(f"Slurm did not take the jobs: {str(error).strip()}") from error
        self._submitted.update(dict.fromkeys((job.job_id for job in submitted), time.monotonic()))
        return submitted

    def over(self, job: submitit.Job[None]) -> str | None:
        """Say how a job has ended; None while it waits or works, or while Slurm does not answer."""
        if self.is_local:
            local: str = job.state
            return None if local == "RUNNING" else local
        if time.monotonic() - self._looked > LOOK_SECONDS:
            self._look()
        state = self._states.get(job.job_id)
        if state is None:  # gone, if Slurm has answered since the job was submitted
            return "gone" if self._answered > self._submitted.get(job.job_id, -math.inf) else None
        return state if state in OVER else None

    def cancel(self, jobs: Iterable[submitit.Job[None]]) -> None:
        """End jobs, those that wait too."""
        for job in jobs:
            job.cancel(check=False)
        for job in jobs if self.is_local else ():
            while job.state == "RUNNING":
                time.sleep(0.1)

    def remember(self, out: Path, jobs: Mapping[str, submitit.Job[None]]) -> None:
        """Keep the jobs' numbers by run, so that a later command finds them."""
        if not self.is_local:  # those could not be told from other processes
            write_atomically(_numbers(out), json.dumps({name: job.job_id for name, job in jobs.items()}) + "\n")

    def find(self, out: Path) -> dict[str, submitit.Job[None]]:
        """Find the jobs of an earlier command that still wait or work, as far as Slurm has answered, by run."""
        if self.is_local or not _numbers(out).exists():
            return {}
        numbers: dict[str, str] = json.loads(_numbers(out).read_text())
        jobs = {name: submitit.SlurmJob[None](out / "slurm", number) for name, number in numbers.items()}
        return {name: job for name, job in jobs.items() if self.over(job) is None}

    def _look(self) -> None:
        """Ask for the states of all our jobs at once; what Slurm said last holds while it does not answer."""
        command = ["squeue", "--me", "--noheader", "--array", "--states=all", "--format=%i|%T"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        self._looked = time.monotonic()
        if asked.returncode == 0:
            lines = [line.strip().partition("|") for line in asked.stdout.splitlines()]
            self._states = {number: state for number, _, state in lines}
            self._answered = self._looked


def _numbers(out: Path) -> Path:
    return out / "slurm" / "jobs.json"


def _parameter(key: str, text: str) -> tuple[str, Any]:
    """Name an option as submitit does, and read its value."""
    own = SlurmExecutor._valid_parameters() - {"job_name", "time", "mem", "setup", "teardown", "srun_args"}
    known = sorted({"cluster", *_GENERAL, *own} - set(_OURS) - {"additional_parameters", "map_count"})
    if key not in known:
        close = difflib.get_close_matches(key, known, n=1)
        hint = f": did you mean '{close[0]}'?" if close else "."
        raise ValueError(f"unknown option of Slurm '{key}'{hint} Options: {', '.join(known)}.")
    name = _GENERAL.get(key, f"slurm_{key}")
    if name == "name" or not name.startswith(("slurm_signal", "timeout", "cpus", "gpus", "mem_gb")):
        return name, text
    try:
        return name, float(text) if name == "mem_gb" else int(text)
    except ValueError:
        what = "whole minutes" if name == "timeout_min" else "a number"
        raise ValueError(f"option of Slurm '{key}' must be {what}, got '{text}'.") from None
