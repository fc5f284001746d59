"""What all records of benchmarks say: when, with what, on what."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch

from torchcbl.lab.machine import describe_machine

Row = Mapping[str, object]


def quartiles(times: Sequence[float]) -> dict[str, float]:
    """The median and the quartiles of what was timed, as a row has them; of one run, that run."""
    low, median, high = statistics.quantiles(times, n=4) if len(times) > 1 else [*times] * 3
    return {"seconds": median, "quartile_low": low, "quartile_high": high}


def write(path: str | Path, command: str, method: str, rows: Sequence[Row], **more: object) -> None:
    """Write the rows of a benchmark and what they were measured with."""
    record = {
        "command": command,
        "method": method,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "torchcbl": version("torchcbl")},
        "machine": describe_machine(torch.get_num_threads(), "cpu"),
        **more,
        "rows": list(rows),
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
