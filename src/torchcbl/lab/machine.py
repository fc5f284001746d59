"""What a run ran on: versions and hardware, for its record."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def num_cores() -> int:
    """Count the cores this process may use (a container often allows fewer than the machine has)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine(threads: int, device: str) -> dict[str, object]:
    """Describe the machine for a record.

    Args:
        threads: Threads torch used; results may differ in their last bits with another number.
        device: "cpu", "cuda", ...
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": num_cores(),
        "threads": threads,
        "device": device,
    }


def versions() -> dict[str, str]:
    """List the versions that numbers may depend on.

    Example:
        >>> sorted(versions())
        ['lightning', 'numpy', 'python', 'torch', 'torchcbl']
    """
    packages = ("torchcbl", "torch", "lightning", "numpy")
    return {"python": platform.python_version(), **{name: _version(name) for name in packages}}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    """Read the processor's name where Linux tells it; `platform.processor` is often empty there."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
