"""A sweep: one arm, its settings and seeds, kept in one file, and extended by later commands."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.codec import VersionError, check_schema, of_another_version
from torchcbl.lab.recipe import ARM_NAMES, DERIVED_ARMS, Recipe, differences, read_recipe
from torchcbl.lab.sweep.grid import LOOP_KEYS, Setting
from torchcbl.lab.sweep.trials import Trial

SCHEMA = 1
FIRST_SEED = 1000
"""Seeds of a sweep begin here: a study of what it chose, whose seeds begin at 0, repeats no run that chose it."""
PLAIN = ("standard", "as-released-standard", "as-released-standard-no-dropout")
"""Networks without feedback, which a sweep holds its arm against."""
CRITERIA = ("accuracy", "loss")
FILE = "sweep.json"


@dataclass(frozen=True)
class Sweep:
    """Say what a sweep tries.

    Args:
        recipe: What holds for all settings, and what the chosen one is written into.
        arm: The arm that is tried.
        settings: All that were asked for, in this folder, by whatever command.
        seeds: Runs of each setting, >= 1: seeds 1000, 1001, ...
        epochs: Of each run, where the settings do not say.
        by: Validation score to choose by, "accuracy" or "loss".
        refused: Settings that cannot be had, by label, and why.
        ended: Whether the last command came to its end, so that a run that is missing has failed.

    Raises:
        ValueError: A value is out of range, or the arm cannot be tried.
    """

    recipe: Recipe
    arm: str
    settings: tuple[Setting, ...]
    seeds: int
    epochs: int
    by: str = "accuracy"
    refused: Mapping[str, str] = field(default_factory=dict)
    ended: bool = False

    def __post_init__(self) -> None:
        tried = [arm for arm in ARM_NAMES if arm not in PLAIN and arm not in DERIVED_ARMS]
        if self.arm not in tried:
            raise ValueError(
                f"--arm must be one that is trained and no plain network, got '{self.arm}': {', '.join(tried)}."
            )
        if not self.settings:
            raise ValueError("a sweep needs at least one setting, got none.")
        if self.by not in CRITERIA:
            raise ValueError(f"--by must be one of {', '.join(CRITERIA)}, got '{self.by}'.")
        dataclasses.replace(self.recipe, seeds=self.seeds, epochs=self.epochs)  # checks both

    @property
    def plain(self) -> str:
        """The plain network that the arm stands on, with the arm's dropout."""
        if not self.arm.startswith("as-released"):
            return "standard"
        return "as-released-standard" if self.arm.endswith("-dropout") else "as-released-standard-no-dropout"

    @property
    def keys(self) -> tuple[str, ...]:
        """The recipe keys that it goes over."""
        return self.settings[0].keys

    @property
    def possible(self) -> tuple[Setting, ...]:
        """The settings that can be had."""
        return tuple(setting for setting in self.settings if setting.label not in self.refused)

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """Seeds of the runs of each setting."""
        return tuple(range(FIRST_SEED, FIRST_SEED + self.seeds))

    def reference(self, setting: Setting) -> Setting:
        """Return what of a setting holds for the plain network too, which has no loop."""
        return setting.without(LOOP_KEYS)

    @property
    def references(self) -> tuple[Setting, ...]:
        """Under which settings the plain network is trained along."""
        return tuple(dict.fromkeys(self.reference(setting) for setting in self.possible))

    def recipe_of(self, setting: Setting) -> Recipe:
        """Return the recipe of a setting's runs."""
        return setting.applied(dataclasses.replace(self.recipe, epochs=self.epochs))

    def trial(self, out: Path, arm: str, setting: Setting, seed: int, data: Path | None = None) -> Trial:
        """Name one run."""
        return Trial(self.recipe_of(setting), arm, seed, out, data, setting)

    def trials(self, out: Path, data: Path | None = None) -> list[Trial]:
        """List the runs, seed by seed, so that a sweep cut short holds every setting equally often."""
        entries = [(self.plain, one) for one in self.references] + [(self.arm, one) for one in self.possible]
        return [self.trial(out, arm, one, seed, data) for seed in self.all_seeds for arm, one in entries]


def merged(known: Sweep, asked: Sweep, where: Path) -> Sweep:
    """Add what is asked for to what a folder holds: all settings that were ever tried, each with as many seeds.

    Raises:
        ValueError: They differ in more than settings and seeds; the message says in what.
    """
    differing = differences(known.recipe.as_dict(), asked.recipe)
    for key, there, here in (
        ("the arm", known.arm, asked.arm),
        ("the number of epochs", known.epochs, asked.epochs),
        ("what it goes over", " ".join(known.keys), " ".join(asked.keys)),
    ):
        differing += [f"{key} is {there} there, {here} here"] if there != here else []
    if differing:
        raise ValueError(f"{where} belongs to another sweep: {'; '.join(differing)}. Choose another --out.")
    settings = tuple(dict.fromkeys(known.settings + asked.settings))
    return dataclasses.replace(asked, settings=settings, seeds=max(known.seeds, asked.seeds))


def claim(sweep: Sweep, out: Path) -> Sweep:
    """Make `out` the folder of this sweep, with the settings and seeds of earlier commands.

    Raises:
        ValueError: `out` holds another sweep, or a study.
    """
    if (out / "recipe.toml").exists() and not (out / FILE).exists():
        raise ValueError(f"{out} holds a study: choose another --out for the sweep.")
    known = (out / FILE).exists() and (out / "recipe.toml").exists()  # a kill may have come between the two
    return merged(load(out), sweep, out) if known else sweep


def save(sweep: Sweep, out: Path) -> None:
    """Write a sweep into its folder: `sweep.json`, and its recipe.

    Raises:
        OSError: The folder cannot be written.
    """
    plain = {
        "schema": SCHEMA,
        "arm": sweep.arm,
        "by": sweep.by,
        "seeds": sweep.seeds,
        "first_seed": FIRST_SEED,
        "epochs": sweep.epochs,
        "settings": [dict(setting.values) for setting in sweep.settings],
        "refused": dict(sweep.refused),
        "ended": sweep.ended,
    }
    write_atomically(out / FILE, json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
    write_atomically(out / "recipe.toml", sweep.recipe.as_toml())


def load(out: Path) -> Sweep:
    """Read the sweep of a folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged.
    """
    path = out / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{out} holds no sweep: give a folder that `torchcbl sweep` wrote.")
    if not (out / "recipe.toml").is_file():
        raise FileNotFoundError(f"{out} lacks recipe.toml: run the same `torchcbl sweep` again, which writes it.")
    recipe = read_recipe(out / "recipe.toml")
    try:
        plain = json.loads(path.read_bytes())
        check_schema(plain["schema"], SCHEMA)
        settings = tuple(_setting(values, recipe) for values in plain["settings"])
        numbers = plain["seeds"], plain["epochs"]
        return Sweep(recipe, plain["arm"], settings, *numbers, plain["by"], plain["refused"], plain["ended"])
    except VersionError as error:
        raise of_another_version(path, error) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}): delete it and recipe.toml beside it, and run the same `torchcbl sweep` "
            "again: finished runs are kept."
        ) from error


def _setting(values: Mapping[str, object], recipe: Recipe) -> Setting:
    """Read values back as the recipe has them."""
    given = Setting(tuple(values.items()))
    changed = given.applied(recipe)
    return Setting(tuple((key, getattr(changed, key)) for key in given.keys))
