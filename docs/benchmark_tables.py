"""Write the tables of docs/choosing.md from the records in results/benchmarks/.

    python docs/benchmark_tables.py           # write
    python docs/benchmark_tables.py --check   # change nothing; exit with 1 if the tables are out of date

Each pair of comments `<!-- benchmark:NAME -->` and `<!-- /benchmark:NAME -->` holds what `results/benchmarks/NAME.json`
says. The records are made by `python benchmarks/NAME.py --json results/benchmarks/NAME.json`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torchcbl.files import write_atomically

PAGE = Path(__file__).parent / "choosing.md"
RECORDS = Path(__file__).parent.parent / "results" / "benchmarks"

Record = dict[str, Any]


def origin(record: Record) -> str:
    """Say when and on what a record was made."""
    machine, versions = record["machine"], record["versions"]
    return (
        f"`{record['command']}`, {record['date']}: {machine['processor']}, {machine['threads']} thread, "
        f"torch {versions['torch']}."
    )


def memory(record: Record) -> str:
    """Write the peak memory of each rule by T."""
    steps = sorted({row["steps"] for row in record["rows"]})
    cells: dict[tuple[str, float, str], dict[int, Record]] = {}
    for row in record["rows"]:
        cells.setdefault((row["rule"], row["alpha"], row["solver"]), {})[row["steps"]] = row
    lines = [
        f"Peak memory of forward and backward in MiB, batch {record['batch']}: {record['method']}.",
        "",
        "| rule | alpha | solver | " + " | ".join(f"T = {step}" for step in steps) + " | largest / first | resident |",
        "|---|--:|---" + "|--:" * (len(steps) + 2) + "|",
    ]
    for (rule, alpha, solver), own in cells.items():
        sizes = " | ".join(f"{own[step]['bytes'] / 2**20:.1f}" for step in steps)
        worst = max(row["ratio"] for row in own.values())
        resident = own[steps[-1]].get("resident_bytes")
        seen = "" if resident is None else f"{resident / 2**20:.0f}"
        lines.append(f"| `{rule}` | {alpha:g} | `{solver}` | {sizes} | {worst:.2f} | {seen} |")
    return "\n".join([*lines, "", origin(record)])


def solvers(record: Record) -> str:
    """Write one table for each map and direction."""
    groups: dict[tuple[str, bool], list[Record]] = {}
    for row in record["rows"]:
        groups.setdefault((row["case"], row["backward"]), []).append(row)
    return "\n\n".join([*(solver_table(*key, rows) for key, rows in groups.items()), origin(record)])


def solver_table(case: str, backward: bool, rows: list[Record]) -> str:
    """Write what the solvers took on one map."""
    what = "forward and backward" if backward else "forward"
    lines = [
        f"**{case}**, {what}, {rows[0]['batch']} samples to a relative residual of {rows[0]['tolerance']:g}:",
        "",
        "| | solver | evaluations per sample | ms (quartiles; n) | MiB | largest error | met |"
        + (" error of the gradient |" if backward else ""),
        "|---|---|--:|--:|--:|--:|--:|" + ("--:|" if backward else ""),
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['library']} | `{row['solver']}` | {row['failed']} | | | | |" + " |" * backward)
            continue
        low, middle, high = (1e3 * row[name] for name in ("quartile_low", "seconds", "quartile_high"))
        gradient = f" {row['gradient_error']:.0e} |" if backward else ""
        times = f"{middle:.0f} ({low:.0f} to {high:.0f}; {row['n']})"
        lines.append(
            f"| {row['library']} | `{row['solver']}` | {row['evaluations']:.1f} | {times} "
            f"| {row['bytes'] / 2**20:.1f} | {row['error']:.0e} | {row['met']}/{row['batch']} |{gradient}"
        )
    return "\n".join(lines)


def gradients(record: Record) -> str:
    """Write the bias of each rule, by rate."""
    rates = sorted({row["rate"] for row in record["rows"]})
    cells: dict[str, dict[float, Record]] = {}
    for row in record["rows"]:
        cells.setdefault(row["rule"], {})[row["rate"]] = row
    lines = [
        f"Distance from the gradient of the fixed point by its size, {record['rows'][0]['n']} samples, float64:",
        "",
        "| rule | steps differentiated | " + " | ".join(f"bias, rho = {rate:g} | cosine" for rate in rates) + " |",
        "|---|--:" + "|--:|--:" * len(rates) + "|",
    ]
    for rule, own in cells.items():
        numbers = " | ".join(f"{own[rate]['bias']:.1e} | {own[rate]['cosine']:.4f}" for rate in rates)
        lines.append(f"| `{rule}` | {own[rates[0]]['differentiated_steps']} | {numbers} |")
    return "\n".join([*lines, "", origin(record)])


TABLES: dict[str, Callable[[Record], str]] = {"memory": memory, "gradients": gradients, "solvers": solvers}


def filled(text: str) -> str:
    """Return the page with the tables as the records have them."""
    for name, write in TABLES.items():
        record = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        block = f"<!-- benchmark:{name} -->\n\n{write(record)}\n\n<!-- /benchmark:{name} -->"
        parts = re.split(rf"<!-- benchmark:{name} -->.*?<!-- /benchmark:{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{PAGE.name} has {len(parts) - 1} places marked benchmark:{name}, expected one.")
        text = block.join(parts)
    return text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    check = parser.parse_args().check
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if not check:
        write_atomically(PAGE, new)
    return int(check and old != new)


if __name__ == "__main__":
    sys.exit(main())
