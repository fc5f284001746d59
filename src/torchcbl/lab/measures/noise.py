"""The kind `noise`: sound in background noise, by signal-to-noise ratio."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchcbl.lab.measures.base import Ground, Measure, Subject, UnfitError
from torchcbl.lab.measures.store import About, Result
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import Record
from torchcbl.lab.robustness import CLEAN, NoisyRun, earlier_path, read_noisy
from torchcbl.lab.sources import SOURCES


@dataclass(frozen=True)
class Noise:
    """What a run scored in noise.

    Args:
        about: Which run.
        ratios: "clean", then decibels.
        accuracy: Fraction classified rightly, by ratio and step tau.
        balanced: The same, each class counting alike.

    Raises:
        ValueError: The three are not of one length.
    """

    about: About
    ratios: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    balanced: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        lengths = (len(self.ratios), len(self.accuracy), len(self.balanced))
        if len(set(lengths)) != 1 or not self.ratios:
            raise ValueError(f"noise needs accuracy and balanced of each ratio, got {lengths} of them")

    def as_noisy_run(self) -> NoisyRun:
        """Return it in the form of earlier versions."""
        about = self.about
        return NoisyRun(about.arm, about.seed, about.n, self.ratios, self.accuracy, self.balanced)


class NoiseMeasure(Measure):
    """Score a run on clips with background noise mixed in."""

    name = "noise"
    result = Noise

    def unfit(self, recipe: Recipe) -> str | None:
        """See `Measure.unfit`."""
        return None if SOURCES[recipe.data].noun == "clip" else _without(recipe)

    def prepare(self, ground: Ground) -> None:
        """See `Measure.prepare`."""
        if not getattr(ground.dataset, "recordings", None):
            raise UnfitError(_without(ground.recipe))

    def measure(self, subject: Subject, ground: Ground) -> Noise:
        """See `Measure.measure`."""
        from torchcbl.lab.sound.dataset import SoundDataset, testing_noise
        from torchcbl.lab.sound.robustness import scores_by_snr

        def outputs(x: Tensor, target: Tensor) -> Tensor:
            return subject.outputs(x.contiguous(memory_format=torch.channels_last), target)

        data = ground.dataset
        assert isinstance(data, SoundDataset)
        scores = scores_by_snr(
            outputs, data.clips["test"], data.front_end, testing_noise(data.recordings), labelled=True
        )
        return Noise(
            about=subject.about(self.name, data.size("test")),
            ratios=tuple(CLEAN if math.isinf(ratio) else f"{ratio:g} dB" for ratio in scores),
            accuracy=tuple(score.accuracy for score in scores.values()),
            balanced=tuple(score.balanced_accuracy for score in scores.values()),
        )

    def headline(self, found: Result) -> str:
        """See `Measure.headline`."""
        assert isinstance(found, Noise)
        rows = zip(found.ratios, found.accuracy, strict=True)
        return ", ".join(f"{ratio} {100 * steps[-1]:.1f}%" for ratio, steps in rows)

    def read(self, folder: Path, record: Record) -> Result | None:
        """See `Measure.read`; results of earlier versions lie in another folder, and know less."""
        found = super().read(folder, record)
        path = earlier_path(folder, record.name)
        if found is not None or not path.is_file():
            return found
        old = read_noisy(path)
        about = About(self.name, old.arm, old.seed, record.finished, old.n, {}, {}, {}, math.nan)
        return Noise(about, old.ratios, old.accuracy, old.balanced)


def _without(recipe: Recipe) -> str:
    return f"{recipe.name} is on {recipe.data}, which comes without recordings of noise to mix in"
