"""What it is worth that training processes keep freed memory, and that they do not fill new tensors.

    OMP_NUM_THREADS=1 python benchmarks/allocator.py --json results/benchmarks/allocator.json

Printed: for each arm, medians over the processes, which run in turn, of processor time and page faults per step of
batch 128 on one thread under deterministic algorithms, and the median over the rounds of each ratio of times: freed
memory kept against given back, then new tensors left as they are against filled with NaN.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

import torch

import record
from torchcbl.lab.arms import find_arm
from torchcbl.lab.processes import USERS_OWN, keep_memory, use_threads
from torchcbl.lab.recipe import load_recipe

ARMS = ("standard", "cbl")
KINDS = ("left", "kept", "unfilled")
"""Memory given back and new tensors filled; memory kept and new tensors filled; memory kept and nothing filled."""
WARM_UP, STEPS = 5, 20


def set_up(kind: str) -> None:
    """Be a process of one of the three kinds; the last is what trains."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_num_threads(1)
    if kind == "kept":
        keep_memory()
    elif kind == "unfilled":
        use_threads(1)


def measure(arm_name: str, kind: str) -> dict[str, float]:
    """Take training steps in this process: milliseconds and page faults of each."""
    set_up(kind)
    recipe = load_recipe("cifar10-augmented")
    arm = find_arm(arm_name).adjusted(recipe)
    model = arm.build(recipe, (3, 32, 32), 10, 0).to(memory_format=torch.channels_last).train()
    optimiser = torch.optim.Adam(model.parameters())
    x = torch.randn(recipe.batch_size, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 10, (recipe.batch_size,))
    for step in range(WARM_UP + STEPS):
        if step == WARM_UP:
            begin, faults = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        optimiser.zero_grad()
        arm.loss(model, x, target).backward()
        optimiser.step()
    spent = time.process_time() - begin
    return {
        "milliseconds": 1e3 * spent / STEPS,
        "faults": (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults) / STEPS,
    }


def measure_apart(arm_name: str, kind: str) -> dict[str, float]:
    """Measure in a process of its own, since an allocator has a history."""
    free = {name: value for name, value in os.environ.items() if not name.startswith(USERS_OWN)}
    command = [sys.executable, __file__, "--alone", arm_name, kind]
    found: dict[str, float] = json.loads(subprocess.run(command, env=free, capture_output=True, check=True).stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7, help="n: processes of each kind (default 7)")
    parser.add_argument("--json", help="also write the rows to this file")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(*arguments.alone)))
        return
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for arm in ARMS:
        rounds = [{kind: measure_apart(arm, kind) for kind in KINDS} for _ in range(arguments.pairs)]
        row: dict[str, object] = {"arm": arm, "n": len(rounds)}
        for kind, against in zip(KINDS[1:], KINDS, strict=False):
            ratios = [found[kind]["milliseconds"] / found[against]["milliseconds"] for found in rounds]
            row |= {f"{kind}_to_{against}": statistics.median(ratios), f"{kind}_to_{against}_least": min(ratios)}
            row[f"{kind}_to_{against}_most"] = max(ratios)
        for kind in KINDS:
            medians = {key: statistics.median(found[kind][key] for found in rounds) for key in rounds[0][kind]}
            row |= {f"{kind}_{key}": value for key, value in medians.items()}
        rows.append(row)
        print(", ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{value}" for key, value in row.items()))
    if arguments.json:
        command = f"python benchmarks/allocator.py --pairs {arguments.pairs} --json results/benchmarks/allocator.json"
        method = f"processor time of {STEPS} training steps after {WARM_UP}, in processes that run in turn"
        record.write(arguments.json, command, method, rows)


if __name__ == "__main__":
    main()
