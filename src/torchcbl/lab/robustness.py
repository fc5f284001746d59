"""How right the runs of a study on sound stay in background noise: what is measured, as its own page takes it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torchcbl.lab.codec import VersionError, check_schema, of_another_version
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import run_name

CLEAN = "clean"
SCHEMA = 1


@dataclass(frozen=True)
class NoisyRun:
    """What one run scored at each signal-to-noise ratio.

    Args:
        arm: The run's arm.
        seed: Its seed.
        n: How many test clips.
        ratios: "clean", then decibels.
        accuracy: Fraction classified rightly, by ratio and step tau.
        balanced: The same, each class counting alike.
        schema: Version of this layout.
    """

    arm: str
    seed: int
    n: int
    ratios: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    balanced: tuple[tuple[float, ...], ...]
    schema: int = SCHEMA


@dataclass(frozen=True)
class Robustness:
    """What was measured of a study.

    Args:
        recipe: The study's.
        runs: One entry per finished run.
    """

    recipe: Recipe
    runs: tuple[NoisyRun, ...]

    @property
    def arms(self) -> tuple[str, ...]:
        """Arms that were measured, in the recipe's order."""
        measured = {run.arm for run in self.runs}
        return tuple(arm for arm in self.recipe.arms if arm in measured)

    def of(self, arm: str) -> list[NoisyRun]:
        """The runs of an arm by seed."""
        return sorted((run for run in self.runs if run.arm == arm), key=lambda run: run.seed)


def measure(folder: Path, data: Path | None = None, tell: Callable[[str], None] = lambda text: None) -> Robustness:
    """Measure every finished run of a study that has not been measured yet: `torchcbl measure --only noise`.

    Args:
        folder: The study's folder.
        data: Folder of the data; None for `TORCHCBL_DATA` or a download.
        tell: Called with a line for each run.

    Raises:
        FileNotFoundError: There is no study there, or no finished run with its weights.
        ValueError: It is not about sound, its data have no noise, or a result is damaged.
    """
    from torchcbl.lab.measures.noise import Noise
    from torchcbl.lab.measures.study import measure_study

    found = measure_study(folder, ("noise",), data, tell=tell)
    by_arm = found.of("noise", Noise)
    return Robustness(found.recipe, tuple(run.as_noisy_run() for runs in by_arm.values() for run in runs))


def earlier_path(folder: Path, run: str) -> Path:
    """Where earlier versions kept what they measured of a run."""
    return folder / "robustness" / f"{run}.json"


def read_noisy(path: Path) -> NoisyRun:
    """Read what an earlier version measured of one run.

    Raises:
        ValueError: The file is damaged, or of another run than its name says.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        check_schema(values["schema"], SCHEMA)
        rows = {key: tuple(tuple(map(float, row)) for row in values[key]) for key in ("accuracy", "balanced")}
        found = NoisyRun(**{**values, **rows, "ratios": tuple(values["ratios"])})
        lengths = {len(found.ratios), len(found.accuracy), len(found.balanced)}
        if run_name(found.arm, found.seed) != path.stem or len(lengths) != 1:
            raise ValueError(f"run {run_name(found.arm, found.seed)}")
    except VersionError as error:
        raise of_another_version(path, error) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and run the same command again.") from error
    return found
