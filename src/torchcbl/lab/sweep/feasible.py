"""Which settings can be had: each model is built, and its loss and gradients computed, before anything is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from torchcbl.lab.arms import Arm, find_arm
from torchcbl.lab.arms.base import Shape
from torchcbl.lab.arms.matched import MATCHED, training_flops
from torchcbl.lab.data import Form, load_dataset
from torchcbl.lab.data.identity import keep_identity
from torchcbl.lab.data.progress import Progress, silent
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.runs import begun
from torchcbl.lab.sweep.grid import LOOP_KEYS, Setting
from torchcbl.lab.sweep.plan import Sweep

_DATA_KEYS = ("augment", "masking", "noise", "image_size", "seconds")
_SHAPING = ("image_size", "seconds")
"""Those that change the samples before any training."""


def check_arm(sweep: Sweep, form: Form) -> None:
    """Check that the arm can be chosen and reads what the sweep goes over.

    Raises:
        ValueError: It is told the labels, or its model and loss do not depend on a key.
    """
    arm = find_arm(sweep.arm)
    if arm.oracle:
        raise ValueError(f"arm '{arm.name}' is told the labels: an upper bound, which no setting can be chosen by.")
    unread = [key for key in sweep.keys if key in LOOP_KEYS and key not in keys_read(arm, sweep, form)]
    if unread:
        raise ValueError(
            f"arm '{arm.name}' does not read the recipe key '{unread[0]}': every value would give the same runs. "
            "Leave it out of --over, or name another --arm."
        )


def keys_read(arm: Arm, sweep: Sweep, form: Form) -> set[str]:
    """Find the recipe keys that an arm's model and loss depend on."""
    if isinstance(arm, MATCHED):
        return _keys_that_resize(arm, sweep, form)
    seen: set[str] = set()

    class Watched(Recipe):
        def __getattribute__(self, name: str) -> object:
            seen.add(name)
            return super().__getattribute__(name)

        # what is kept by recipe would read all of it to find it again
        __hash__ = object.__hash__
        __eq__ = object.__eq__

    recipes = [Watched(**vars(sweep.recipe_of(setting))) for setting in sweep.settings]
    seen.clear()  # each has read itself to be checked
    for watched in recipes:  # the build of one that cannot be had stops at the first reason
        arm.adjusted(watched)
        with contextlib.suppress(ValueError):  # what cannot be had is said of each setting
            arm.build(watched, form.shape, form.num_classes, seed=0)
        if seen.issuperset(sweep.keys):
            break
    return seen


def _keys_that_resize(arm: Arm, sweep: Sweep, form: Form) -> set[str]:
    """A matched network reads all that `cbl` does, to find its size, and depends on nothing but that size."""
    sizes: dict[Setting, tuple[torch.Size, ...]] = {}
    for setting in sweep.settings:
        with contextlib.suppress(ValueError):  # as above
            model = arm.build(sweep.recipe_of(setting), form.shape, form.num_classes, seed=0)
            sizes[setting] = tuple(parameter.shape for parameter in model.parameters())
    return {key for key in sweep.keys if _resizes(key, sizes)}


def _resizes(key: str, sizes: Mapping[Setting, tuple[torch.Size, ...]]) -> bool:
    """Whether settings that differ in the key alone differ in size, or there are none to tell by."""
    alike: dict[str, list[tuple[torch.Size, ...]]] = {}
    for setting, size in sizes.items():
        alike.setdefault(setting.without((key,)).label, []).append(size)
    pairs = [found for found in alike.values() if len(found) > 1]
    return not pairs or any(len(set(found)) > 1 for found in pairs)


def find_refused(
    sweep: Sweep, settings: Iterable[Setting], form_of: Callable[[Setting], Form], progress: Progress = silent
) -> dict[str, str]:
    """Try settings out: build each model and compute its loss and gradients once.

    Args:
        sweep: What they belong to.
        settings: Those to try.
        form_of: Gives the form of a setting's data.
        progress: Called as it goes on.

    Returns:
        Why a setting cannot be had, by its label.
    """
    arm, refused, settings = find_arm(sweep.arm), {}, list(settings)
    for index, setting in enumerate(settings):
        progress("trying the settings' models", index, len(settings))
        form = form_of(setting)
        reason = _try(arm, sweep.recipe_of(setting), form.shape, form.num_classes)
        if reason is not None:
            refused[setting.label] = reason
    return refused


def _try(arm: Arm, recipe: Recipe, shape: Shape, num_classes: int) -> str | None:
    try:
        training_flops(arm, recipe, shape, num_classes)
    except (ValueError, TypeError, RuntimeError) as error:
        return str(error)
    return None


class Forms:
    """Load the data of settings, once for each way in which a recipe wants them, and keep their form.

    Args:
        sweep: What the settings belong to.
        out: The sweep's folder, which holds runs on these data alone.
        data: Folder of the data set.
        progress: Called during downloads and decoding.
    """

    def __init__(self, sweep: Sweep, out: Path, data: Path | None, progress: Progress) -> None:
        self._sweep, self._out, self._data, self._progress = sweep, out, data, progress
        self._fresh = not begun(out, "trials")
        self._known: dict[tuple[object, ...], Form] = {}

    def __call__(self, setting: Setting) -> Form:
        """Return the form of a setting's data."""
        recipe = self._sweep.recipe_of(setting)
        key = tuple(getattr(recipe, name) for name in _DATA_KEYS)
        if key not in self._known:
            dataset = load_dataset(recipe, self._data, self._progress)
            shaped = ",".join(f"{name}={getattr(recipe, name)}" for name in _SHAPING if name in self._sweep.keys)
            keep_identity(self._out, dataset, self._fresh, shaped)
            self._known[key] = dataset.form
        return self._known[key]


def checked(sweep: Sweep, out: Path, data: Path | None, progress: Progress) -> Sweep:
    """Load the data, and find the settings that cannot be had; those that have a finished run are not tried again.

    Raises:
        ValueError: The arm does not fit, no setting can be had, or a data file is wrong.
        OSError: The data is not there.
    """
    forms = Forms(sweep, out, data, progress)
    check_arm(sweep, forms(sweep.settings[0]))
    new = [one for one in sweep.settings if not _begun(sweep, out, one)]
    found = replace(sweep, refused=find_refused(sweep, new, forms, progress))
    if not found.possible:
        first, reason = next(iter(found.refused.items()))
        raise ValueError(f"none of the {len(found.settings)} settings can be had; {first}: {reason}")
    return found


def _begun(sweep: Sweep, out: Path, setting: Setting) -> bool:
    return any(sweep.trial(out, sweep.arm, setting, seed).record.is_file() for seed in sweep.all_seeds)
