"""Engines by name. Only the one that is asked for is imported, and what it needs with it."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from torchcbl.lab.engines.base import Engine, Failure, Plan

__all__ = ["ENGINE_NAMES", "Engine", "Failure", "Plan", "make_engine"]


@dataclass(frozen=True)
class _Entry:
    """Where an engine is, and what must be installed for it."""

    module: str
    name: str
    package: str | None = None


_ENGINES = {
    "local": _Entry("torchcbl.lab.engines.local", "LocalEngine"),
    "ray": _Entry("torchcbl.lab.engines.ray", "RayEngine", package="ray"),
    "slurm": _Entry("torchcbl.lab.engines.slurm", "SlurmEngine", package="submitit"),
}
ENGINE_NAMES = tuple(_ENGINES)


def make_engine(name: str, plan: Plan, options: Mapping[str, str] | None = None) -> Engine:
    """Make the engine of this name.

    Args:
        name: "local" (processes on this machine), "ray" (a Ray cluster) or "slurm" (jobs of Slurm).
        plan: How many runs at a time, and on how much each.
        options: What `slurm` asks Slurm for; the others take none.

    Raises:
        ValueError: There is no such engine, or it takes no such options.
        ImportError: What it needs is not installed.
        OSError: What it runs on is not there.

    Example:
        >>> make_engine("slrum", Plan())
        Traceback (most recent call last):
        ValueError: unknown engine 'slrum': did you mean 'slurm'? Engines: local, ray, slurm.
    """
    if name not in _ENGINES:
        close = difflib.get_close_matches(name, ENGINE_NAMES, n=1)
        hint = f": did you mean '{close[0]}'?" if close else "."
        raise ValueError(f"unknown engine '{name}'{hint} Engines: {', '.join(ENGINE_NAMES)}.")
    entry = _ENGINES[name]
    if options and name != "slurm":
        raise ValueError(f"options of Slurm ({', '.join(options)}) need --engine slurm, got --engine {name}.")
    if entry.package is not None and importlib.util.find_spec(entry.package) is None:
        raise ImportError(f"engine '{name}' needs {entry.package}: pip install 'torchcbl[{name}]'")
    kind = getattr(importlib.import_module(entry.module), entry.name)
    engine: Engine = kind(plan, options) if name == "slurm" else kind(plan)
    return engine
