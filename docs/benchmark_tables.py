"""Write the tables of docs/choosing.md, docs/options.md and docs/statistics.md from results/benchmarks/.

    python docs/benchmark_tables.py           # write
    python docs/benchmark_tables.py --check   # change nothing; exit with 1 if a table is out of date

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

DOCS = Path(__file__).parent
RECORDS = DOCS.parent / "results" / "benchmarks"

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
        + (" error of the gradient | adjoints it calls unsolved |" if backward else ""),
        "|---|---|--:|--:|--:|--:|--:|" + ("--:|--:|" if backward else ""),
    ]
    for row in rows:
        if "failed" in row:
            lines.append(f"| {row['library']} | `{row['solver']}` | {row['failed']} | | | | |" + " | |" * backward)
            continue
        low, middle, high = (1e3 * row[name] for name in ("quartile_low", "seconds", "quartile_high"))
        gradient = f" {row['gradient_error']:.0e} | {row.get('unsolved_adjoints', '')} |" if backward else ""
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


def intervals(record: Record) -> str:
    """Write how often intervals hold the truth, and how often several looks show what is not there."""
    kinds: dict[str, list[Record]] = {}
    for row in record["rows"]:
        kinds.setdefault(row["kind"], []).append(row)
    cells: dict[tuple[int, int], list[Record]] = {}
    for row in kinds["coverage"]:
        cells.setdefault((row["seeds"], row["images"]), []).append(row)
    own = next(iter(cells.values()))
    lines = [
        f"The truth held by 95% intervals, over new seeds and new images; the lowest and the highest of {len(own)} "
        f"settings (effects of the seed and of the image, small and large), {own[0]['n']} simulated studies each:",
        "",
        "| seeds | images | `two_level_interval` | `t_interval` over seeds |",
        "|--:|--:|--:|--:|",
    ]
    for (seeds, images), rows in cells.items():
        lines.append(f"| {seeds} | {images} | {held(rows, 'two_level')} | {held(rows, 'student')} |")
    lines += [
        "",
        f"On the same images, normal differences, {kinds['percentile'][0]['n']} studies each:",
        "",
        "| seeds | percentile bootstrap over seeds | `t_interval` |",
        "|--:|--:|--:|",
        *(
            f"| {row['seeds']} | {held([row], 'percentile')} | {held([row], 'student')} |"
            for row in kinds["percentile"]
        ),
        "",
        f"A difference shown where there is none, at any look, at p < 0.05; {kinds['looks'][0]['n']} studies each:",
        "",
        "| looks after so many seeds | shown |",
        "|---|--:|",
        *(
            f"| {', '.join(str(count) for count in row['looks'])} | {100 * row['shown'] / row['n']:.1f}% |"
            for row in kinds["looks"]
        ),
    ]
    return "\n".join([*lines, "", origin(record)])


def held(rows: list[Record], name: str) -> str:
    """Write the shares of studies whose interval holds the truth: the least and the largest."""
    low, *_, high = sorted(100 * row[name] / row["n"] for row in [*rows, *rows])
    return f"{low:.0f}%" if f"{low:.0f}" == f"{high:.0f}" else f"{low:.0f}% to {high:.0f}%"


def building(record: Record) -> str:
    """Write what building a loop takes, in seconds and in forward passes."""
    lines = [
        "| network | input | sites | cut | seconds (quartiles; n) | forward passes |",
        "|---|---|--:|---|--:|--:|",
    ]
    for row in record["rows"]:
        low, middle, high = (row[name] for name in ("quartile_low", "seconds", "quartile_high"))
        shape = " x ".join(map(str, row["input"]))
        times = f"{middle:.2f} ({low:.2f} to {high:.2f}; {row['n']})"
        passes = f"{middle / row['forward']:.0f}"
        lines.append(f"| {row['network']} | {shape} | {row['sites']} | {row['cut']} | {times} | {passes} |")
    return "\n".join([*lines, "", origin(record)])


PAGES: dict[str, dict[str, Callable[[Record], str]]] = {
    "choosing.md": {"memory": memory, "gradients": gradients, "solvers": solvers},
    "options.md": {"building": building},
    "statistics.md": {"intervals": intervals},
}


def filled(page: str, text: str) -> str:
    """Return a page with the tables as the records have them.

    Raises:
        ValueError: A place for a table is missing, or there are two.
    """
    for name, write in PAGES[page].items():
        record = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))
        block = f"<!-- benchmark:{name} -->\n\n{write(record)}\n\n<!-- /benchmark:{name} -->"
        parts = re.split(rf"<!-- benchmark:{name} -->.*?<!-- /benchmark:{name} -->", text, flags=re.DOTALL)
        if len(parts) != 2:
            raise ValueError(f"{page} has {len(parts) - 1} places marked benchmark:{name}, expected one.")
        text = block.join(parts)
    return text


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    late = False
    for page in PAGES:
        old = (DOCS / page).read_text(encoding="utf-8")
        new = filled(page, old)
        late |= old != new
        if not check:
            write_atomically(DOCS / page, new)
    return int(check and late)


if __name__ == "__main__":
    sys.exit(main())
