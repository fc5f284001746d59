"""torchcbl's solvers against torchdeq 0.1.0 on the same maps, to the same residual of every sample.

    python benchmarks/solvers.py [--json results/benchmarks/solvers.json]

`maps.py` has the maps; each batch is easy and hard at once. Both get the same tolerance of the relative residual and at
most 200 evaluations per sample, their other options being their defaults, the same memory, and, for torchdeq's
Anderson, the best ridge of four; besides, each runs at its defaults altogether. Reported are evaluations per sample
(rows of the map, counted by the map; torchdeq evaluates the whole batch until the worst is done), processor time on
one thread (median and quartiles; the solvers take turns), peak memory (as in memory.py), the largest relative error
against the fixed point in float64, and how many answers have a residual within twice the tolerance when it is measured
anew. Once forward, and once forward and backward by the implicit function theorem, where what is counted is still the
forward, and besides for how many samples ours warns that the adjoint was not solved. About five minutes.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

import record
from maps import CASES, STEPS, Case
from memory import peak_bytes, settle
from torchcbl.solvers import Anderson, Broyden, Newton, Picard, Solver

RIDGES = (1e-4, 1e-6, 1e-8, 1e-12)
UNSOLVED = r"the adjoint system of gradient='implicit' was not solved for (\d+) of"
BUDGET = 4.0
"""Seconds after which a solver is not run again on the same map."""


@dataclass
class Entry:
    """A solver with its options: of torchcbl if `solver` is given, else of torchdeq."""

    label: str
    kind: str
    solver: Solver | None = None
    options: dict[str, object] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)
    defaults: bool = False
    """Whether tolerance and steps are the library's own too."""

    @property
    def library(self) -> str:
        return "torchdeq" if self.solver is None else "torchcbl"

    def run(self, case: Case, differentiate: bool) -> Tensor:
        if self.solver is not None:
            tolerance, steps = (1e-6, 100) if self.defaults else (case.tolerance, STEPS)
            return case.ours(self.solver, tolerance, steps, differentiate)
        name = {"picard": "fixed_point_iter"}.get(self.kind, self.kind)
        options: dict[str, object] = {"f_solver": name, "b_solver": name, **self.options}
        if not self.defaults:
            options |= {"f_tol": case.tolerance, "b_tol": case.tolerance, "f_stop_mode": "rel", "b_stop_mode": "rel"}
            options |= {"f_max_iter": STEPS, "b_max_iter": STEPS}
        return case.theirs(options, self.more, differentiate)


def entries(case: Case, differentiate: bool) -> list[Entry]:
    found = [
        Entry("Picard()", "picard", Picard()),
        Entry("Anderson()", "anderson", Anderson()),
        Entry("Broyden()", "broyden", Broyden()),
        Entry("fixed_point_iter", "picard"),
        Entry("anderson", "anderson"),
        Entry("broyden", "broyden"),
    ]
    if not case.name.endswith("4096"):
        found.insert(3, Entry("Newton()", "newton", Newton()))
    if differentiate:
        return found
    ridge = min(RIDGES, key=lambda lam: rank(case, Entry("", "anderson", more={"m": 6, "lam": lam})))
    large = min(RIDGES, key=lambda lam: rank(case, Entry("", "anderson", more={"m": 11, "lam": lam})))
    return [
        *found,
        Entry("Anderson(memory=5)", "anderson", Anderson(memory=5)),
        Entry("Anderson(memory=30)", "anderson", Anderson(memory=30)),
        Entry(f"anderson, m=6, lam={ridge:g} (best of 4)", "anderson", more={"m": 6, "lam": ridge}),
        Entry(f"anderson, m=11, lam={large:g} (best of 4)", "anderson", more={"m": 11, "lam": large}),
        Entry("broyden, LBFGS_thres=20", "broyden", more={"LBFGS_thres": 20}),
        Entry("fixed_point, all defaults", "defaults", Anderson(), defaults=True),
        Entry("get_deq, all defaults", "picard", defaults=True),
    ]


def rank(case: Case, entry: Entry) -> tuple[int, int]:
    """Order the options of a solver: first by how many samples it fails, then by what it takes."""
    case.rows = 0
    try:
        answer = entry.run(case, False)
    except torch.linalg.LinAlgError:  # one singular sample ends the whole batch
        return 1, 0
    return -met(case, answer), case.rows


def met(case: Case, answer: Tensor) -> int:
    return int((case.residual(answer.detach()) <= 2 * case.tolerance).sum())


def relative_error(found: Tensor, true: Tensor) -> float:
    error = (found.detach().double() - true).flatten(1).norm(dim=1) / true.flatten(1).norm(dim=1)
    return float(error.max()) if bool(error.isfinite().all()) else math.inf


def describe(
    case: Case, entry: Entry, differentiate: bool, job: Callable[[], object], true: Tensor, gradients: list[Tensor]
) -> dict[str, object]:
    """Return all of a row but its times."""
    row: dict[str, object] = {"case": case.name, "library": entry.library, "solver": entry.label, "kind": entry.kind}
    row |= {"backward": differentiate, "batch": len(true), "tolerance": case.tolerance}
    case.rows = 0
    try:
        answer = entry.run(case, differentiate)
        row |= {"evaluations": case.rows / len(true), "error": relative_error(answer, true), "met": met(case, answer)}
        if differentiate:
            with warnings.catch_warnings(record=True) as told:
                warnings.filterwarnings("always", message=UNSOLVED)
                found = torch.cat([part.flatten() for part in case.gradients(answer)]).double()
            wanted = torch.cat([part.flatten() for part in gradients])
            row["gradient_error"] = relative_error(found[None], wanted[None])
            if entry.solver is not None:
                counts = [match for one in told if (match := re.match(UNSOLVED, str(one.message)))]
                row["unsolved_adjoints"] = sum(int(match[1]) for match in counts)
    except torch.linalg.LinAlgError:  # torchdeq's, for a single sample
        return row | {"failed": "LinAlgError"}
    del answer
    return row | {"bytes": peak_bytes(job)}


def measure(case: Case, differentiate: bool, runs: int) -> list[dict[str, object]]:
    true, true_gradients = case.truth()
    all_entries = entries(case, differentiate)

    def job(entry: Entry) -> Callable[[], object]:
        if not differentiate:
            return lambda: entry.run(case, False)
        return lambda: case.gradients(entry.run(case, True))

    rows = [describe(case, entry, differentiate, job(entry), true, true_gradients) for entry in all_entries]
    seconds: list[list[float]] = [[] for _ in rows]
    for turn in range(runs):
        for entry, times, row in list(zip(all_entries, seconds, rows, strict=True))[:: 1 if turn % 2 else -1]:
            if sum(times) < BUDGET and "failed" not in row:
                begin = time.process_time()
                job(entry)()
                times.append(time.process_time() - begin)
    for row, times in zip(rows, seconds, strict=True):
        if "failed" in row:
            continue
        row |= record.quartiles(times) | {"n": len(times)}
    return rows


def show(row: dict[str, object]) -> str:
    if "failed" in row:
        return f"{row['library']:9}{row['solver']:38}{row['failed']}"
    gradient = f"  gradient {row['gradient_error']:.0e}" if "gradient_error" in row else ""
    return (
        f"{row['library']:9}{row['solver']:38}{row['evaluations']:7.1f}  {1e3 * float(str(row['seconds'])):9.1f} ms "
        f"{int(str(row['bytes'])) / 2**20:7.1f} MiB  error {row['error']:.0e}  {row['met']}/{row['batch']}{gradient}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", nargs="+", default=list(CASES), choices=list(CASES), help="which maps (default: all)"
    )
    parser.add_argument("--runs", type=int, default=7, help="timed runs of each solver (default 7)")
    parser.add_argument("--batch", type=int, help="samples (default: that of each map)")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=UNSOLVED)
    settle()
    rows: list[dict[str, object]] = []
    for name in arguments.cases:
        case = CASES[name]() if arguments.batch is None else CASES[name](batch=arguments.batch)
        for differentiate in (False, True):
            print(f"\n{case.name}, {'forward and backward' if differentiate else 'forward'}, to {case.tolerance:g}")
            for row in measure(case, differentiate, arguments.runs):
                rows.append(row)
                print(show(row), flush=True)
        if arguments.json:
            command = "python benchmarks/solvers.py --json results/benchmarks/solvers.json"
            method = "processor time; evaluations counted by the map; memory from torch.profiler; truth in float64"
            record.write(arguments.json, command, method, rows, torchdeq="0.1.0", steps=STEPS)
    return 0


if __name__ == "__main__":
    sys.exit(main())
