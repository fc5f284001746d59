"""How right the runs of a study stay when their input is disturbed: here, by background noise."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchcbl.files import write_atomically
from torchcbl.lab.arms import find_arm
from torchcbl.lab.data import load_dataset
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.recipe import Recipe, read_recipe
from torchcbl.lab.records import run_name
from torchcbl.lab.runs import all_runs

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
    """Measure every finished run of a study that has not been measured yet.

    Args:
        folder: The study's folder.
        data: Folder of the data; None for `TORCHCBL_DATA` or a download.
        tell: Called with a line for each run.

    Raises:
        FileNotFoundError: There is no study there, or no finished run with its weights.
        ValueError: It is not about sound, its data have no noise, or a record is damaged.
    """
    if not (folder / "recipe.toml").is_file():
        raise FileNotFoundError(f"{folder} holds no study: give a folder that `torchcbl compare` wrote.")
    recipe = read_recipe(folder / "recipe.toml")
    runs = [run for run in all_runs(recipe, folder, data) if run.record.is_file() and run.model.is_dir()]
    if not runs:
        raise FileNotFoundError(f"{folder} holds no finished run with its weights: run the same `torchcbl compare`.")
    places = {run.name: folder / "robustness" / f"{run.name}.json" for run in runs}
    pending = [run for run in runs if not places[run.name].is_file()]
    if pending:
        score = _noisy_scores(recipe, data)
        for run in pending:
            network = rebuild(run.folder).eval()
            arm = find_arm(run.arm)
            found = score(run.arm, run.seed, lambda x, arm=arm, network=network: arm.outputs(network, x))
            write_atomically(places[run.name], json.dumps(asdict(found), indent=1) + "\n")
            by_ratio = zip(found.ratios, found.accuracy, strict=True)
            tell(f"{run.name}: {', '.join(f'{ratio} {100 * steps[-1]:.1f}%' for ratio, steps in by_ratio)}")
    return Robustness(recipe, tuple(read_noisy(places[run.name]) for run in runs))


def _noisy_scores(recipe: Recipe, data: Path | None) -> Callable[..., NoisyRun]:
    from torchcbl.lab.sound.dataset import SoundDataset, testing_noise
    from torchcbl.lab.sound.robustness import scores_by_snr

    dataset = load_dataset(recipe, data)
    if not isinstance(dataset, SoundDataset) or not dataset.recordings:
        raise ValueError(f"{recipe.name} is on {recipe.data}, which comes without recordings of noise to mix in.")
    noise = testing_noise(dataset.recordings)

    def score(arm: str, seed: int, outputs: Callable[[Tensor], object]) -> NoisyRun:
        def channels_last(x: Tensor) -> object:
            return outputs(x.contiguous(memory_format=torch.channels_last))

        scores = scores_by_snr(channels_last, dataset.clips["test"], dataset.front_end, noise)  # type: ignore[arg-type]
        return NoisyRun(
            arm=arm,
            seed=seed,
            n=dataset.size("test"),
            ratios=tuple(CLEAN if math.isinf(ratio) else f"{ratio:g} dB" for ratio in scores),
            accuracy=tuple(score.accuracy for score in scores.values()),
            balanced=tuple(score.balanced_accuracy for score in scores.values()),
        )

    return score


def read_noisy(path: Path) -> NoisyRun:
    """Read what was measured of one run.

    Raises:
        ValueError: The file is damaged, or of another run than its name says.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        rows = {key: tuple(tuple(map(float, row)) for row in values[key]) for key in ("accuracy", "balanced")}
        found = NoisyRun(**{**values, **rows, "ratios": tuple(values["ratios"])})
        lengths = {len(found.ratios), len(found.accuracy), len(found.balanced)}
        if found.schema != SCHEMA or run_name(found.arm, found.seed) != path.stem or len(lengths) != 1:
            raise ValueError(f"schema {found.schema}, run {run_name(found.arm, found.seed)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and run the same command again.") from error
    return found
