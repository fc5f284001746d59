"""The commands of the command line; what each needs is imported when it runs."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torchcbl.lab.recipe import Recipe, load_recipe
from torchcbl.lab.sources import SOURCES

if TYPE_CHECKING:
    from torchcbl.lab.engines import Engine

USER_ERROR, FAILED = 2, 1
_TRAINING = (
    *("over", "samples", "seeds", "epochs", "arm", "set", "jobs", "threads"),
    *("engine", "devices", "nodes", "strategy", "slurm"),
)


def compare(options: argparse.Namespace) -> int:
    """Run a study and print its table."""
    recipe, data = _recipe(options, _overrides(options))
    out = options.out or Path("runs") / recipe.name
    engine = _engine(options)

    from torchcbl.lab.progress import make_display
    from torchcbl.lab.records import read_records
    from torchcbl.lab.study import run_study

    failures = run_study(recipe, out, make_display(), data, engine=engine)
    if read_records(out):
        _report(out)
    for failure in failures:
        say_error(f"{failure.run.name} failed: {failure.reason} (all of it in {failure.run.log})")
    return FAILED if failures else 0


def report(options: argparse.Namespace) -> int:
    """Rebuild a report and print its table."""
    if (options.folder / "sweep.json").is_file():
        return _report_sweep(options.folder)
    if not (options.folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"{options.folder} holds no study: give a folder that `torchcbl compare` wrote.")
    _report(options.folder)
    return 0


def sweep(options: argparse.Namespace) -> int:
    """Run a sweep, and print what it chose."""
    recipe, data = _recipe(options, _pairs("--set", options.set))
    out = options.out or Path("runs") / f"{recipe.name}-sweep"
    if options.finish:
        return _finish_sweep(options, out)

    from torchcbl.lab.sweep.grid import make_settings
    from torchcbl.lab.sweep.plan import Sweep

    settings = make_settings(options.over, recipe, options.samples)
    if options.epochs is not None and dict(settings[0].values).get("epochs"):
        raise ValueError("--epochs and --over epochs both say how long to train: leave one out.")
    seeds = recipe.seeds if options.seeds is None else options.seeds
    epochs = recipe.epochs if options.epochs is None else options.epochs
    asked = Sweep(recipe, options.arm or "cbl", settings, seeds, epochs, options.by or "accuracy")
    engine = _engine(options)

    from torchcbl.lab.progress import make_display
    from torchcbl.lab.sweep.results import read_results
    from torchcbl.lab.sweep.running import run_sweep

    found, failures = run_sweep(asked, out, make_display(), engine, data)
    if read_results(found, out).complete:
        _report_sweep(out, options.data)
    for failure in failures:
        say_error(f"{failure.run.name} failed: {failure.reason} (all of it in {failure.run.log})")
    return FAILED if failures else 0


def _finish_sweep(options: argparse.Namespace, out: Path) -> int:
    """Choose among what is finished; refuse what only training would read."""
    unread = [f"--{key}" for key in _TRAINING if getattr(options, key) not in (None, [])]
    if unread:
        raise ValueError(
            f"--finish trains nothing and takes the sweep as {out} holds it: leave out {', '.join(unread)}."
        )
    if options.by is not None:
        from torchcbl.lab.sweep.running import judge_by

        judge_by(options.by, out)
    return _report_sweep(out, options.data)


def _report_sweep(out: Path, data: str | None = None) -> int:
    from torchcbl.lab.report.sweep import write_sweep
    from torchcbl.lab.sweep.plan import load
    from torchcbl.lab.sweep.results import read_results

    written = write_sweep(read_results(load(out), out), out)
    where = ["--data", str(_own_data(data)[1])] if data else []
    compare = shlex.join(["torchcbl", "compare", str(written.best), *where])
    print(f"\n{written.text}\n\nreport: {written.page}\nto look at test data, once: {compare}")
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


def measure(options: argparse.Namespace) -> int:
    """Measure a study's runs, and write the page."""
    from torchcbl.lab.measures.study import measure_study
    from torchcbl.lab.processes import keep_memory
    from torchcbl.lab.report.measures import summary, write_measures

    data = _own_data(options.data)[1]
    keep_memory()  # one run at a time is measured in this process
    found = measure_study(
        options.folder,
        _words(options.only),
        data,
        options.samples,
        _words(options.arms),
        options.jobs,
        lambda text: print(text, flush=True),
    )
    page = write_measures(found, data)
    print(f"\n{summary(found)}\n\npage: {page}")
    return 0


def _words(text: str | None) -> list[str] | None:
    return None if text is None else [word.strip() for word in text.split(",") if word.strip()]


def robustness(options: argparse.Namespace) -> int:
    """Measure a study's runs in background noise, and write the page."""
    from torchcbl.lab.report.robustness import summary, write_robustness
    from torchcbl.lab.robustness import measure

    found = measure(options.folder, _own_data(options.data)[1], lambda text: print(text, flush=True))
    page = write_robustness(found, options.folder)
    print(f"\n{summary(found)}\n\npage: {page}")
    return 0


def _report(out: Path) -> None:
    from torchcbl.lab.report import build_report

    built = build_report(out)
    print(f"\n{built.text}\n\nreport: {built.page}")


def _recipe(options: argparse.Namespace, changes: Mapping[str, str]) -> tuple[Recipe, Path | None]:
    """Load the recipe that the options name, and say where its data are."""
    own, data = _own_data(options.data)
    if own and options.recipe not in (None, own):
        raise ValueError(
            f"--data {own}:DIR comes with the recipe '{own}': leave out '{options.recipe}', change it by --set"
        )
    recipe = load_recipe(options.recipe or own or "demo", changes)
    if data is not None and recipe.data == "digits":
        raise ValueError(
            f"recipe '{recipe.name}' is on digits, which come with scikit-learn: leave out --data, name the recipe "
            "that reads the folder, or write --data images:DIR or audio:DIR for data of your own"
        )
    return recipe, data


def _engine(options: argparse.Namespace) -> Engine:
    """Make the engine that the options ask for."""
    from torchcbl.lab.engines import Plan, make_engine
    from torchcbl.lab.ranks import Spread

    devices, nodes = (1 if number is None else number for number in (options.devices, options.nodes))
    spread = Spread(devices, nodes, options.strategy or "ddp")
    if options.strategy and spread.size == 1:
        raise ValueError(f"--strategy {options.strategy} spreads one run over several: add --devices or --nodes.")
    return make_engine(
        options.engine or "local", Plan(options.jobs, options.threads, spread), _pairs("--slurm", options.slurm)
    )


def _own_data(text: str | None) -> tuple[str | None, Path | None]:
    """Read --data: a folder, or what kind of one's own data and their folder, as in images:DIR."""
    if text is None:
        return None, None
    kind, colon, folder = text.partition(":")
    if colon and kind in SOURCES and SOURCES[kind].own:
        if not folder.strip():
            raise ValueError(f"--data {kind}:DIR needs the folder, got '{text}': write --data {kind}:. for this one")
        return kind, Path(folder).expanduser()
    if len(kind) > 1 and kind.isalpha() and colon and not Path(text).exists():  # one letter is a drive
        raise ValueError(f"--data knows images:DIR, audio:DIR or a folder, got '{text}', which is none of them")
    return None, Path(text)


def _overrides(options: argparse.Namespace) -> dict[str, str]:
    """Collect the changes to the recipe as TOML text; `--set` has the last word."""
    changes = {key: str(value) for key in ("seeds", "epochs") if (value := getattr(options, key)) is not None}
    if options.arms is not None:
        changes["arms"] = json.dumps([arm.strip() for arm in options.arms.split(",")])
    return {**changes, **_pairs("--set", options.set)}


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    """Read an option that is given as key=value, once or more."""
    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            example = "augment=true" if option == "--set" else "partition=gpu"
            raise ValueError(f"{option} needs key=value, got '{text}': for example {option} {example}")
        pairs[key.strip()] = value.strip()
    return pairs


def say_error(message: str) -> int:
    """Print an error and return the exit code of a user's."""
    print(f"torchcbl: error: {message}", file=sys.stderr)
    return USER_ERROR
