"""The recipe of the chosen setting, ready for a study, which is where test data are looked at."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.recipe import ARM_NAMES, Recipe
from torchcbl.lab.sweep.plan import Sweep
from torchcbl.lab.sweep.results import Candidate, Results

FILE = "best.toml"


def best_recipe(sweep: Sweep, candidate: Candidate) -> Recipe:
    """Return the recipe of a sweep with the values of a setting, under a new name.

    Its arms are the recipe's, the arm that was tried and its plain network. Seeds and epochs are the recipe's own,
    however short the sweep's runs were; unless the sweep goes over epochs.
    """
    arms = {*sweep.recipe.arms, sweep.plain, sweep.arm}
    chosen = candidate.setting.applied(sweep.recipe)
    return replace(chosen, name=f"{sweep.recipe.name}-best", arms=tuple(arm for arm in ARM_NAMES if arm in arms))


def write_best(results: Results, best: Candidate, out: Path) -> Path:
    """Write `best.toml` into the sweep's folder, with a word on how it was chosen, and return its path.

    Raises:
        OSError: The folder cannot be written.
    """
    path, seeds, tried = out / FILE, results.seeds, len(results.complete)
    comment = (
        f"# Chosen by `torchcbl sweep`: {best.setting.label},\n"
        f"# the best of {tried} settings of {best.arm} by validation {best.by}, mean over {len(seeds)} seeds from "
        f"{seeds[0]}.\n# No test data were looked at. The score of the best of several is too good on average:\n"
        f"# `{shlex.join(['torchcbl', 'compare', str(path)])}` tests it, with other seeds.\n"
    )
    write_atomically(path, comment + best_recipe(results.sweep, best).as_toml())
    return path
