"""The command line. Only what parsing needs is imported here, so that help answers at once."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torchcbl import __version__
from torchcbl.lab import commands
from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.recipe import ARM_NAMES, recipe_names

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: 0, 1 when a run failed, 2 for a user's error, 130 for Ctrl-C.

    Args:
        arguments: The command's words; those of the process if none are given.
    """
    options = _parser().parse_args(arguments)
    try:
        code = int(options.command(options))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from the last finished epochs.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads what we print has had enough, as in `torchcbl sites MODEL | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        return commands.say_error(f"{error.name} is not installed: pip install 'torchcbl[lab]'")
    except ImportError as error:  # of an extra; it says which
        return commands.say_error(str(error))
    except (ValueError, TypeError, OSError) as error:
        return commands.say_error(str(error))


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a shape is whole numbers and commas, as in 1,3,32,32, got '{text}'"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torchcbl",
        description="Does top-down feedback help a network, and what does it cost? Train both and compare.",
        epilog="examples:\n"
        "  torchcbl compare                  the demo, about half a minute on two cores\n"
        "  torchcbl compare cifar10 --help   what can be changed\n"
        "  torchcbl report runs/demo         the report again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"torchcbl {__version__}")
    group = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        _add_compare,
        _add_sweep,
        _add_report,
        _add_sites,
        _add_audit,
        _add_stability,
        _add_measure,
        _add_robustness,
        _add_listen,
    ):
        add(group)
    return parser


Commands = argparse._SubParsersAction  # what add_subparsers returns has no public name


def _add(group: Commands[argparse.ArgumentParser], name: str, about: str, examples: str) -> argparse.ArgumentParser:
    return group.add_parser(
        name,
        help=about[0].lower() + about[1:].partition(".")[0],
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_compare(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "compare",
        "Train every arm of a recipe with every seed and compare them.\n\n"
        "Finished runs are never repeated. Kill it at any moment: the same command goes on from the last\n"
        "finished epochs and ends with the same numbers, bit for bit. Each run gets cores // jobs threads,\n"
        "and their number may change the last bits of a result: keep --jobs over an interruption.",
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
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core)")
    parser.add_argument(
        "--data",
        metavar="DIR",
        help="folder of the data (else TORCHCBL_DATA, or download); images:DIR, audio:DIR: your own, by class",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: runs/RECIPE)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe; may be repeated"
    )
    _add_scale(parser)


def _add_sweep(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
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
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at a time (default: one per core)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data; images:DIR, audio:DIR: your own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the results (default: runs/RECIPE-sweep)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="change a key of the recipe")
    parser.add_argument("--finish", action="store_true", help="train nothing more: choose among what is finished")
    _add_scale(parser)


def _add_scale(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("more machines and devices (docs/scale.md)")
    group.add_argument("--engine", default="local", metavar="NAME", help="where runs go: local (default), ray or slurm")
    group.add_argument("--threads", type=int, metavar="N", help="threads of each process (default: cores // jobs)")
    group.add_argument(
        "--devices", type=int, default=1, metavar="N", help="GPUs, or processes, of one run on a machine"
    )
    group.add_argument("--nodes", type=int, default=1, metavar="N", help="machines of one run (ray, slurm)")
    group.add_argument("--strategy", metavar="NAME", help="how one run is spread: ddp (default) or fsdp")
    group.add_argument(
        "--slurm",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="what to ask Slurm for: partition, time (minutes), mem_gb, ...; cluster=local tries it without Slurm",
    )


def _add_report(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "report",
        "Rebuild the report of a study, or of a sweep, from its records alone.",
        "  torchcbl report runs/demo",
    )
    parser.set_defaults(command=commands.report)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")


def _add_sites(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "sites",
        "List the places of a model where feedback can enter.",
        "  torchcbl sites StandardCNN\n"
        "  torchcbl sites torchvision.models:resnet18 --input 1,3,224,224\n"
        "  torchcbl sites my_model.py:build",
    )
    parser.set_defaults(command=commands.sites)
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="StandardCNN, package.module:callable or file.py:callable, called without arguments",
    )
    parser.add_argument(
        "--input",
        type=_shape,
        metavar="SHAPE",
        help="run the model on noise of this shape, as in 1,3,32,32, to see more",
    )


def _add_audit(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "audit",
        "Say which adapters of a finished run can move its output, and what its loop costs.",
        "  torchcbl audit runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=commands.audit)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")


def _add_stability(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "stability",
        "Say whether a finished run's loop settles.\n\n"
        "Measures its contraction at the fixed points of validation samples, certifies it where the layers allow,\n"
        "runs it on far beyond T, and writes stability.html and stability.json into the run's folder.",
        "  torchcbl stability runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=commands.stability)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")
    parser.add_argument("--samples", type=int, default=128, metavar="N", help="validation samples (default: 128)")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="how far the loop is run (default: 64)")


def _add_measure(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "measure",
        "Measure the finished runs of a study at every step: calibration, cost, corruptions, attacks, ...\n\n"
        "Writes measures/KIND/<run>.json and measures.html into the study's folder. What has been measured is not\n"
        "measured again; kill it at any moment, and the same command goes on with the next.",
        "  torchcbl measure runs/demo\n"
        "  torchcbl measure runs/cifar10 --only clean,corruptions --data ~/cifar10\n"
        "  torchcbl measure runs/cifar10 --only attacks --samples 200 --arms standard,cbl --jobs 2",
    )
    parser.set_defaults(command=commands.measure)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")
    parser.add_argument("--only", metavar="A,B", help=f"kinds out of {', '.join(KIND_NAMES)} (default: all that fit)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="test samples of corruptions and occlusion (1000), attacks (500)"
    )
    parser.add_argument("--arms", metavar="A,B", help="which arms (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")


def _add_robustness(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "robustness",
        "Measure the finished runs of a study on sound in background noise.\n\n"
        "Accuracy by signal-to-noise ratio, arm and step, with intervals over the seeds. Every run meets the same\n"
        "noise. Writes robustness.html and measures/noise/<run>.json into the study's folder; runs already measured\n"
        "are not measured again.",
        "  torchcbl robustness runs/speech-five-words",
    )
    parser.set_defaults(command=commands.robustness)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")


def _add_listen(group: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        group,
        "listen",
        "Say what a finished run hears in a recording: its top words at every step, and when its answer changed.",
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 yes.wav\n"
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 --microphone 2",
    )
    parser.set_defaults(command=commands.listen)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a wav or flac file")
    parser.add_argument(
        "--microphone", type=float, metavar="SECONDS", help="record so long (pip install 'torchcbl[microphone]')"
    )
