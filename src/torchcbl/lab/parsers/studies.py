"""The commands of whole studies: compare, sweep, report."""

from __future__ import annotations

import argparse

from torchcbl.lab import commands
from torchcbl.lab.parsers.base import Commands, a_folder, add_command
from torchcbl.lab.recipe import ARM_NAMES, KEYS, recipe_names


def add_compare(group: Commands[argparse.ArgumentParser]) -> None:
    """Train every arm with every seed."""
    parser = add_command(
        group,
        "compare",
        "Train every arm of a recipe with every seed and compare them.\n\n"
        "Finished runs are never repeated. Kill it at any moment: the same command goes on from the last\n"
        "finished epochs and ends with the same numbers, bit for bit. Each run gets cores // jobs threads,\n"
        "and their number may change the last bits of a result: a run goes on with the number it began with.",
        "  torchcbl compare demo\n"
        "  torchcbl compare cifar10 --seeds 2 --epochs 3 --jobs 2 --data ~/cifar10\n"
        "  torchcbl compare demo --arms standard,cbl --set alpha=0.3 --out runs/alpha-0.3\n"
        "  torchcbl compare --data images:~/flowers --set image_size=64\n"
        "  torchcbl compare my-study.toml\n"
        "  torchcbl compare cifar10 --engine slurm --slurm partition=gpu --slurm gpus_per_node=1 --threads 4",
    )
    parser.set_defaults(command=commands.compare)
    parser.add_argument("recipe", nargs="?", help=f"{', '.join(recipe_names())} (default: demo), or a .toml file")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each arm")
    parser.add_argument("--epochs", type=int, metavar="N", help="passes over the training data")
    parser.add_argument("--arms", metavar="A,B", help=f"what to compare, out of {', '.join(ARM_NAMES)}")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or per core)")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of the data (else TORCHCBL_DATA, or download); images:DIR, audio:DIR: your own, by class",
    )
    parser.add_argument("--out", type=a_folder, metavar="DIR", help="folder of the results (default: runs/RECIPE)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change a key of the recipe; may be repeated. Keys: {', '.join(KEYS)}",
    )
    _add_scale(parser)


def add_sweep(group: Commands[argparse.ArgumentParser]) -> None:
    """Choose settings by validation data."""
    parser = add_command(
        group,
        "sweep",
        "Try many settings of one arm and choose by validation data alone; no test data are looked at.\n\n"
        "Every setting and `standard` are trained with the same seeds, which no study uses. Writes sweep.html and\n"
        "best.toml, the recipe of the chosen setting for `torchcbl compare`. Finished runs are never repeated; the\n"
        "same command goes on, and other values or more seeds extend it (docs/sweeps.md).",
        "  torchcbl sweep demo --over steps=1,2,3 --over alpha=0,0.3 --seeds 3\n"
        "  torchcbl sweep cifar10 --over adapter=film,gate --over sites=all,block2+block3,block3 --epochs 5 --jobs 2\n"
        "  torchcbl sweep cifar10 --over steps=1,2,4 --over schedule=repropagate,literal --samples 4 --by loss\n"
        "  torchcbl sweep demo --finish      choose among what is finished",
    )
    parser.set_defaults(command=commands.sweep)
    parser.add_argument("recipe", nargs="?", help=f"{', '.join(recipe_names())} (default: demo), or a .toml file")
    parser.add_argument(
        "--over",
        action="append",
        default=[],
        metavar="KEY=A,B",
        help="values of a recipe key; may be repeated: all combinations are tried",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="try so many of the combinations, drawn at random")
    parser.add_argument("--arm", metavar="NAME", help="what to try (default: cbl)")
    parser.add_argument("--by", metavar="SCORE", help="validation accuracy (default) or loss")
    parser.add_argument("--seeds", type=int, metavar="N", help="runs of each setting")
    parser.add_argument(
        "--epochs", type=int, metavar="N", help="passes over the training data; best.toml keeps its own"
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per GPU, or per core)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data; images:DIR, audio:DIR: your own")
    parser.add_argument("--out", type=a_folder, metavar="DIR", help="folder of the results (runs/RECIPE-sweep)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--finish", action="store_true", help="train nothing more: choose among what is finished")
    _add_scale(parser)


def add_report(group: Commands[argparse.ArgumentParser]) -> None:
    """Rebuild a report."""
    parser = add_command(
        group,
        "report",
        "Rebuild the report of a study, or of a sweep, from its records alone.",
        "  torchcbl report runs/demo",
    )
    parser.set_defaults(command=commands.report)
    parser.add_argument("folder", type=a_folder, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")


def _add_scale(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("more machines and devices (docs/scale.md)")
    group.add_argument("--engine", metavar="NAME", help="where runs go: local (default), ray or slurm")
    group.add_argument("--threads", type=int, metavar="N", help="threads of each process (default: cores // jobs)")
    group.add_argument(
        "--devices", type=int, metavar="N", help="GPUs, or processes, of one run on a machine (default 1)"
    )
    group.add_argument("--nodes", type=int, metavar="N", help="machines of one run (default 1; ray, slurm)")
    group.add_argument("--strategy", metavar="NAME", help="how one run is spread: ddp (default) or fsdp")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what to ask Slurm for: partition, time (minutes), mem_gb, ...; cluster=local tries it without Slurm",
    )
