"""All measures of a study: every finished run, each kind that fits the data, none of them twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from torchcbl.lab.data import load_dataset
from torchcbl.lab.data.identity import check_identity
from torchcbl.lab.locks import hold_saying
from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.measures.base import Ground, UnfitError
from torchcbl.lab.measures.found import Measures
from torchcbl.lab.measures.kinds import find_kind
from torchcbl.lab.measures.tasks import Task, work_off
from torchcbl.lab.recipe import DERIVED_ARMS, Recipe, read_recipe
from torchcbl.lab.runs import Run, all_runs

Tell = Callable[[str], None]


def measure_study(
    folder: Path,
    only: Sequence[str] | None = None,
    data: Path | None = None,
    samples: int | None = None,
    arms: Sequence[str] | None = None,
    jobs: int = 1,
    tell: Tell = lambda text: None,
) -> Measures:
    """Measure every finished run of a study that has not been measured yet.

    Each result is written as soon as it is there: a measurement that was killed goes on with the next.

    Args:
        folder: The study's.
        only: Kinds out of `KIND_NAMES`; None for all that fit the data.
        data: Folder of the data; None for `TORCHCBL_DATA` or a download.
        samples: Test samples that `corruptions`, `occlusion` and `attacks` look at; None for each kind's own number.
        arms: Which arms; None for all.
        jobs: Runs at a time, at least 1; each gets cores // jobs threads.
        tell: Called with a line for each run and kind.

    Returns:
        Everything that was ever measured of the study.

    Raises:
        FileNotFoundError: There is no study there, no finished run, or no weights of a run that is to be measured.
        ValueError: A kind or an arm is unknown, no kind fits, a result is damaged, the data are not those that the runs
            were trained on, or runs of one study would be measured on different numbers of samples.
        BlockingIOError: Another process measures this study.
    """
    recipe = _recipe(folder)
    kinds = _chosen(only)
    _check(recipe, arms, samples, jobs)
    runs = _finished(recipe, folder, data, arms)
    with _alone(folder):
        known = Measures.read(folder, kinds)
        unfit = {kind: reason for kind in kinds if (reason := find_kind(kind).unfit(recipe))}
        _check_fit(kinds, unfit)
        tasks = [
            Task(folder, data, samples, kind, run)
            for run in runs
            for kind in kinds
            if kind not in unfit and run.name not in known.found[kind]
        ]
        if tasks or data is not None or samples is not None:  # what was asked for is checked, also if all is there
            _check_weights(tasks)
            ground = Ground(recipe, load_dataset(recipe, data), data, samples)
            check_identity(folder, ground.dataset)
            unfit |= _prepare({task.kind for task in tasks}, ground, explicit=only is not None)
            _check_fit(kinds, unfit)
            tasks = [task for task in tasks if task.kind not in unfit]
            asked = {task.kind for task in tasks} if samples is None else set(kinds) - unfit.keys()
            _check_settings([kind for kind in kinds if kind in asked], known, ground)
            for line in work_off(tasks, ground, jobs):
                tell(line)
    for kind, reason in unfit.items():
        tell(f"{kind}: left out, {reason}")
    return Measures.read(folder, KIND_NAMES, unfit)


def _recipe(folder: Path) -> Recipe:
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"{folder} holds no study: give a folder that `torchcbl compare` wrote.")
    return read_recipe(folder / "recipe.toml")


def _chosen(only: Sequence[str] | None) -> tuple[str, ...]:
    if only is None:
        return KIND_NAMES
    for name in only:
        find_kind(name)
    if not only:
        raise ValueError(f"no kind of measure is named: there are {', '.join(KIND_NAMES)}.")
    return tuple(name for name in KIND_NAMES if name in only)


def _check(recipe: Recipe, arms: Sequence[str] | None, samples: int | None, jobs: int) -> None:
    if samples is not None and samples < 2:
        raise ValueError(f"samples must be at least 2, got {samples}: a stratified choice needs one of each class.")
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}: the number of runs that are measured at a time.")
    for arm in arms or ():
        if arm not in recipe.arms:
            raise ValueError(f"the study has no arm '{arm}': it has {', '.join(recipe.arms)}.")


def _finished(recipe: Recipe, folder: Path, data: Path | None, arms: Sequence[str] | None) -> list[Run]:
    """List the runs that have a record; of a derived arm, those that it is read off."""
    wanted = recipe.arms if arms is None else tuple(DERIVED_ARMS.get(arm, (arm, 0))[0] for arm in arms)
    runs = [run for run in all_runs(recipe, folder, data) if run.record.is_file() and run.arm in wanted]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no finished run of these arms: run `torchcbl compare` first.")
    return runs


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    place, remedy = folder / "measures", "make it a folder that can be written to, or measure a copy"
    busy = f"another process measures {folder}: wait for it, or stop it."
    with hold_saying(place / ".lock", busy, f"could not write to {place}", remedy):
        yield


def _prepare(kinds: Collection[str], ground: Ground, explicit: bool) -> dict[str, str]:
    """Say which kinds cannot be had, and why: they do not fit, or what they need is not there and was not asked for."""
    unfit = {}
    for kind in kinds:
        try:
            find_kind(kind).prepare(ground)
        except UnfitError as error:
            unfit[kind] = str(error)
        except FileNotFoundError as error:
            if explicit:
                raise
            unfit[kind] = str(error)
    return unfit


def _check_fit(kinds: Sequence[str], unfit: Mapping[str, str]) -> None:
    if set(kinds) <= unfit.keys():
        raise ValueError("; ".join(f"{kind}: {reason}" for kind, reason in unfit.items()) + ".")


def _check_settings(kinds: Sequence[str], known: Measures, ground: Ground) -> None:
    """Refuse to measure runs of one study otherwise than those before."""
    for kind in kinds:
        wanted = find_kind(kind).settings(ground)
        for found in known.found[kind].values():
            there = {**found.about.settings, "n": found.about.n}
            differing = {key: (there.get(key), value) for key, value in wanted.items() if there.get(key) != value}
            if differing:
                text = "; ".join(f"{key} is {old} there, {new} here" for key, (old, new) in differing.items())
                raise ValueError(
                    f"{found.about.run} was measured otherwise: {text}. Name the same --samples, or delete "
                    f"{known.folder / 'measures' / kind} to measure all runs anew."
                )


def _check_weights(tasks: Sequence[Task]) -> None:
    missing = sorted({task.run.name for task in tasks if not task.run.model.is_dir()})
    if missing:
        raise FileNotFoundError(
            f"no weights of {', '.join(missing)}: only where `torchcbl compare` trained can runs be measured. What is "
            "measured already can be read all the same: name its kinds with --only."
        )
