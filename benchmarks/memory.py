"""How much memory forward and backward take under each gradient rule, as T grows.

    python benchmarks/memory.py [--json results/benchmarks/memory.json]

A CNN in a loop over three sites, T = 1, 8, 32 and 128, loss on y_T. Every allocation of torch's CPU allocator is
taken from the profiler and summed up in order, so that the peak is exact to the byte; parameters and images, which
were there before, are not in it. (The batch is large for the network, since a second step already adds a sum of
parameter gradients to a first, whatever T is.) The largest T is run in fresh processes as well, whose peak resident
memory (VmHWM, Linux) must tell the same story, as far as it can: it counts what the C library keeps for itself.

Every rule but `bptt` must stay within 1.15 times its own peak at T = 1, or the exit code is 1. `checkpointed` cannot
where it has more to keep of each step than the context: with alpha > 0 all hidden states, under Anderson and Broyden
their histories. That is measured, and not judged. About three minutes.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import record
import torchcbl as cbl
from torchcbl.gradients import GRADIENTS
from torchcbl.lab.networks import StandardCNN

LIMIT = 1.15
STEPS = (1, 8, 32, 128)
BATCH = 64


@dataclass(frozen=True)
class Case:
    """A loop to be measured."""

    rule: str
    alpha: float = 0.0
    solver: str = "picard"

    @property
    def must_be_flat(self) -> bool:
        """Whether its memory may not grow with T; see the top of this file."""
        return self.rule != "bptt" and (self.rule != "checkpointed" or (self.alpha == 0 and self.solver == "picard"))

    def name(self) -> str:
        return f"{self.rule}, alpha={self.alpha:g}, {self.solver}"

    def build(self, width: int = 8) -> tuple[cbl.ContextLoop, Tensor]:
        torch.manual_seed(0)
        x = torch.randn(BATCH, 3, 32, 32)
        sites = ["block1", "block2", "block3"]
        options = {"alpha": self.alpha, "solver": self.solver, "gradient": self.rule, "step_norm": "frozen"}
        net = cbl.ContextLoop(StandardCNN(width=width), sites, x[:2], **options)
        for weight in net.adapters.parameters():  # away from the identity, where a loop does nothing
            nn.init.normal_(weight, std=0.02)
        return net.train(), x


CASES = [Case(rule, alpha) for alpha in (0.0, 0.5) for rule in GRADIENTS]
CASES += [Case(rule, solver="anderson") for rule in GRADIENTS if rule != "bptt"]


def train_step(net: cbl.ContextLoop, x: Tensor, steps: int) -> None:
    y = net.refine(x, steps=steps).output
    F.cross_entropy(y, torch.arange(len(x)) % 10).backward()


@contextmanager
def silent() -> Iterator[None]:
    """Keep what the profiler writes for itself off the standard error stream."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def settle() -> None:
    """Load what a first loop loads, and leave it out of what is searched for garbage before each measurement."""
    cbl.ContextLoop(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "0", torch.zeros(2, 2))
    gc.collect()
    gc.freeze()


def peak_bytes(run: Callable[[], None]) -> int:
    """Run something and return the largest sum of bytes that were allocated in it and not yet freed."""
    gc.collect()  # so that nothing older is freed meanwhile
    with silent(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def measure(net: cbl.ContextLoop, x: Tensor, steps: int, n: int) -> list[int]:
    peaks = []
    for _ in range(n):
        net.zero_grad()
        peaks.append(peak_bytes(lambda: train_step(net, x, steps)))
    return peaks


def resident(field: str) -> int | None:
    """Read VmRSS or VmHWM of this process, in bytes, where Linux tells it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(field + ":")), None)


def resident_peak(case: Case, steps: int) -> int | None:
    """Run a case in a fresh process and return by how much its peak resident memory exceeds what it began with."""
    code = (
        f"import memory, torch; torch.set_num_threads(1); net, x = memory.{case!r}.build()\n"
        "memory.train_step(net, x, 1); before = memory.resident('VmRSS')\n"
        f"memory.train_step(net, x, {steps}); print(before and memory.resident('VmHWM') - before)"
    )
    here = Path(__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=here, capture_output=True, text=True, check=True)
    return None if run.stdout.strip() == "None" else int(run.stdout)


def rows_of(case: Case, all_steps: Sequence[int], n: int, width: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    first = 0
    net, x = case.build(width)
    train_step(net, x, 1)  # what is made once and kept
    for steps in all_steps:
        peaks = measure(net, x, steps, n)
        first = first or max(peaks)
        row = {"rule": case.rule, "alpha": case.alpha, "solver": case.solver, "steps": steps, "n": n}
        rows.append(row | {"bytes": max(peaks), "least": min(peaks), "ratio": max(peaks) / first})
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", type=int, default=list(STEPS), help="T, the first is compared to")
    parser.add_argument("--runs", type=int, default=2, help="n: runs of each, the largest counts (default 2)")
    parser.add_argument("--width", type=int, default=8, help="channels of the CNN's first block (default 8)")
    parser.add_argument("--no-resident", action="store_true", help="start no further processes")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settle()
    rows, grown = [], []
    print(f"MiB at T = {', '.join(map(str, arguments.steps))}; times the first; resident peak at the last")
    for case in CASES:
        own = rows_of(case, arguments.steps, arguments.runs, arguments.width)
        seen = None if arguments.no_resident else resident_peak(case, arguments.steps[-1])
        own[-1]["resident_bytes"] = seen
        rows += own
        worst = max(float(str(row["ratio"])) for row in own)
        sizes = "".join(f"{int(str(row['bytes'])) / 2**20:8.1f}" for row in own)
        beyond = f"{seen / 2**20:8.1f}" if seen is not None else ""
        verdict = "flat" if worst <= LIMIT else "GROWS" if case.must_be_flat else "grows"
        print(f"{case.name():34}{sizes}  {worst:6.2f} {verdict:5} {beyond}", flush=True)
        grown += [case.name()] if verdict == "GROWS" else []
    if arguments.json:
        method = (
            "largest sum of live bytes of torch's CPU allocator, from torch.profiler; resident_bytes: VmHWM - VmRSS"
        )
        command = "python benchmarks/memory.py --json results/benchmarks/memory.json"
        record.write(arguments.json, command, method, rows, limit=LIMIT, batch=BATCH, width=arguments.width)
    print(f"not flat: {'; '.join(grown)}" if grown else f"all that should be flat are, within {LIMIT}")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
