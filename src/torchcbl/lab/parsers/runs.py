"""The commands that look into finished runs and models."""

from __future__ import annotations

import argparse

from torchcbl.lab import commands
from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.parsers.base import Commands, a_folder, add_command


def add_sites(group: Commands[argparse.ArgumentParser]) -> None:
    """List the places of a model."""
    parser = add_command(
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


def add_audit(group: Commands[argparse.ArgumentParser]) -> None:
    """Audit a run."""
    parser = add_command(
        group,
        "audit",
        "Say which adapters of a finished run can move its output, and what its loop costs.",
        "  torchcbl audit runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=commands.audit)
    parser.add_argument("run", type=a_folder, metavar="RUN", help="OUT/runs/<arm>-seed<k>")


def add_stability(group: Commands[argparse.ArgumentParser]) -> None:
    """Say whether a loop settles."""
    parser = add_command(
        group,
        "stability",
        "Say whether a finished run's loop settles.\n\n"
        "Measures its contraction at the fixed points of validation samples, certifies it where the layers allow,\n"
        "runs it on far beyond T, and writes stability.html and stability.json into the run's folder.",
        "  torchcbl stability runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=commands.stability)
    parser.add_argument("run", type=a_folder, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")
    parser.add_argument("--samples", type=int, default=128, metavar="N", help="validation samples (default: 128)")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="how far the loop is run (default: 64)")


def add_measure(group: Commands[argparse.ArgumentParser]) -> None:
    """Measure finished runs."""
    parser = add_command(
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
    parser.add_argument("folder", type=a_folder, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")
    parser.add_argument("--only", metavar="A,B", help=f"kinds out of {', '.join(KIND_NAMES)} (default: all that fit)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="test samples of corruptions and occlusion (1000), attacks (500)"
    )
    parser.add_argument("--arms", metavar="A,B", help="which arms (default: all)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (default: 1)")


def add_robustness(group: Commands[argparse.ArgumentParser]) -> None:
    """Measure in noise."""
    parser = add_command(
        group,
        "robustness",
        "Measure the finished runs of a study on sound in background noise.\n\n"
        "Accuracy by signal-to-noise ratio, arm and step, with intervals over the seeds. Every run meets the same\n"
        "noise. Writes robustness.html and measures/noise/<run>.json into the study's folder; runs already measured\n"
        "are not measured again.",
        "  torchcbl robustness runs/speech-five-words",
    )
    parser.set_defaults(command=commands.robustness)
    parser.add_argument("folder", type=a_folder, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")


def add_listen(group: Commands[argparse.ArgumentParser]) -> None:
    """Hear a recording."""
    parser = add_command(
        group,
        "listen",
        "Say what a finished run hears in a recording: its top words at every step, and when its answer changed.",
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 yes.wav\n"
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 --microphone 2",
    )
    parser.set_defaults(command=commands.listen)
    parser.add_argument("run", type=a_folder, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("file", type=a_folder, nargs="?", metavar="FILE", help="a wav or flac file")
    parser.add_argument(
        "--microphone", type=float, metavar="SECONDS", help="record so long (pip install 'torchcbl[microphone]')"
    )


def _shape(text: str) -> tuple[int, ...]:
    sizes = text.split(",")
    if not all(size.strip().isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"a shape is whole numbers >= 1 and commas, as in 1,3,32,32, got '{text}'")
    return tuple(map(int, sizes))
