"""The command line. Only what parsing needs is imported here, so that help answers at once."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from torchcbl import __version__
from torchcbl.lab.machine import num_cores
from torchcbl.lab.recipe import ARM_NAMES, load_recipe, recipe_names
from torchcbl.lab.sources import SOURCES

USER_ERROR, FAILED, INTERRUPTED = 2, 1, 130


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
        return _error(f"{error.name} is not installed: pip install 'torchcbl[lab]'")
    except (ValueError, TypeError, OSError) as error:
        return _error(str(error))


def compare(options: argparse.Namespace) -> int:
    """Run a study and print its table."""
    own, data = _own_data(options.data)
    if own and options.recipe not in (None, own):
        raise ValueError(
            f"--data {own}:DIR comes with the recipe '{own}': leave out '{options.recipe}', change it by --set"
        )
    recipe = load_recipe(options.recipe or own or "demo", _overrides(options))
    out = options.out or Path("runs") / recipe.name
    jobs = options.jobs if options.jobs is not None else min(num_cores(), recipe.seeds * len(recipe.arms))

    from torchcbl.lab.progress import make_display
    from torchcbl.lab.records import read_records
    from torchcbl.lab.study import run_study

    failures = run_study(recipe, out, make_display(), data, jobs)
    if read_records(out):
        _report(out)
    for failure in failures:
        _error(f"{failure.run.name} failed: {failure.reason} (all of it in {failure.run.log})")
    return FAILED if failures else 0


def report(options: argparse.Namespace) -> int:
    """Rebuild a report and print its table."""
    if not (options.folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"{options.folder} holds no study: give a folder that `torchcbl compare` wrote.")
    _report(options.folder)
    return 0


def sites(options: argparse.Namespace) -> int:
    """Print a model's possible sites."""
    from torchcbl.lab.inspection import describe_sites

    print(describe_sites(options.model, options.input))
    return 0


def audit(options: argparse.Namespace) -> int:
    """Print a finished run's audit."""
    from torchcbl.lab.inspection import describe_run

    print(describe_run(options.run))
    return 0


def stability(options: argparse.Namespace) -> int:
    """Examine whether a finished run's loop settles, and write the page."""
    from torchcbl.lab.stability import examine

    found = examine(options.run, _own_data(options.data)[1], options.samples, options.steps)

    from torchcbl.lab.report.stability import verdict, write_stability

    page = write_stability(found, options.run)
    print("\n".join([str(found.report), "", *verdict(found), "", f"page: {page}"]))
    return 0


def listen(options: argparse.Namespace) -> int:
    """Print what a run hears in a recording."""
    from torchcbl.lab import listen as ears

    if (options.file is None) == (options.microphone is None):
        raise ValueError("name a sound file, or --microphone SECONDS to record one: one of the two")
    if options.file is not None:
        heard = ears.listen(options.run, options.file)
    else:
        recogniser = ears.load_recogniser(options.run)
        print(f"recording {options.microphone:g} s: speak now", flush=True)
        samples = ears.record(options.microphone)
        heard = ears.hear(recogniser, samples, ears.num_samples_of(options.run, recogniser))
    print(heard.describe())
    return 0


def robustness(options: argparse.Namespace) -> int:
    """Measure a study's runs in background noise, and write the page."""
    from torchcbl.lab.report.robustness import summary, write_robustness
    from torchcbl.lab.robustness import measure

    found = measure(options.folder, _own_data(options.data)[1], lambda text: print(text, flush=True))
    page = write_robustness(found, options.folder)
    print(f"\n{summary(found)}\n\npage: {page}")
    return 0


def _report(out: Path) -> None:
    from torchcbl.lab.records import read_records
    from torchcbl.lab.report import build_report, table

    built = build_report(out)
    print(f"\n{table(read_records(out))}\n\nreport: {built.page}")


def _own_data(text: str | None) -> tuple[str | None, Path | None]:
    """Read --data: a folder, or what kind of one's own data and their folder, as in images:DIR."""
    if text is None:
        return None, None
    kind, colon, folder = text.partition(":")
    if colon and kind in SOURCES and SOURCES[kind].own:
        return kind, Path(folder).expanduser()
    return None, Path(text)


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    """Collect the changes to the recipe as TOML text; `--set` has the last word."""
    changes = {key: str(value) for key in ("seeds", "epochs") if (value := getattr(options, key)) is not None}
    if options.arms is not None:
        changes["arms"] = json.dumps([arm.strip() for arm in options.arms.split(",")])
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set needs key=value, got '{text}': for example --set augment=true")
        changes[key.strip()] = value.strip()
    return changes


def _error(message: str) -> int:
    print(f"torchcbl: error: {message}", file=sys.stderr)
    return USER_ERROR


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(","))


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
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_compare, _add_report, _add_sites, _add_audit, _add_stability, _add_robustness, _add_listen):
        add(commands)
    return parser


Commands = argparse._SubParsersAction  # what add_subparsers returns has no public name


def _add(commands: Commands[argparse.ArgumentParser], name: str, about: str, examples: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=about[0].lower() + about[1:].partition(".")[0],
        description=about,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _add_compare(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "compare",
        "Train every arm of a recipe with every seed and compare them.\n\n"
        "Finished runs are never repeated. Kill it at any moment: the same command goes on from the last\n"
        "finished epochs and ends with the same numbers, bit for bit. Each run gets cores // jobs threads,\n"
        "and their number may change the last bits of a result: keep --jobs over an interruption.",
        "  torchcbl compare demo\n"
        "  torchcbl compare cifar10 --seeds 2 --epochs 3 --jobs 2 --data ~/cifar10\n"
        "  torchcbl compare demo --arms standard,cbl --set alpha=0.3 --out runs/alpha-0.3\n"
        "  torchcbl compare --data images:~/flowers --set image_size=64\n"
        "  torchcbl compare my-study.toml",
    )
    parser.set_defaults(command=compare)
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


def _add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "report",
        "Rebuild the report of a study from its records alone.",
        "  torchcbl report runs/demo",
    )
    parser.set_defaults(command=report)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")


def _add_sites(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "sites",
        "List the places of a model where feedback can enter.",
        "  torchcbl sites StandardCNN\n"
        "  torchcbl sites torchvision.models:resnet18 --input 1,3,224,224\n"
        "  torchcbl sites my_model.py:build",
    )
    parser.set_defaults(command=sites)
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


def _add_audit(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "audit",
        "Say which adapters of a finished run can move its output, and what its loop costs.",
        "  torchcbl audit runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=audit)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")


def _add_stability(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "stability",
        "Say whether a finished run's loop settles.\n\n"
        "Measures its contraction at the fixed points of validation samples, certifies it where the layers allow,\n"
        "runs it on far beyond T, and writes stability.html and stability.json into the run's folder.",
        "  torchcbl stability runs/demo/runs/cbl-seed0",
    )
    parser.set_defaults(command=stability)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")
    parser.add_argument("--samples", type=int, default=256, metavar="N", help="validation samples (default: 256)")
    parser.add_argument("--steps", type=int, default=64, metavar="N", help="how far the loop is run (default: 64)")


def _add_robustness(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "robustness",
        "Measure the finished runs of a study on sound in background noise.\n\n"
        "Accuracy by signal-to-noise ratio, arm and step, with intervals over the seeds. Every run meets the same\n"
        "noise. Writes robustness.html and robustness/<run>.json into the study's folder; runs already measured are\n"
        "not measured again.",
        "  torchcbl robustness runs/speech-five-words",
    )
    parser.set_defaults(command=robustness)
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `torchcbl compare` wrote to (its --out)")
    parser.add_argument("--data", metavar="DIR", help="folder of the data (else TORCHCBL_DATA, or download)")


def _add_listen(commands: Commands[argparse.ArgumentParser]) -> None:
    parser = _add(
        commands,
        "listen",
        "Say what a finished run hears in a recording: its top words at every step, and when its answer changed.",
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 yes.wav\n"
        "  torchcbl listen runs/speech-five-words/runs/cbl-seed0 --microphone 2",
    )
    parser.set_defaults(command=listen)
    parser.add_argument("run", type=Path, metavar="RUN", help="OUT/runs/<arm>-seed<k>")
    parser.add_argument("file", type=Path, nargs="?", metavar="FILE", help="a wav or flac file")
    parser.add_argument(
        "--microphone", type=float, metavar="SECONDS", help="record so long (pip install 'torchcbl[microphone]')"
    )
