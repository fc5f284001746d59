"""What runs score on disturbed images, by disturbance, grade and step: the kinds `corruptions` and `occlusion`."""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchcbl.lab.data import Batches, ImageDataset, Images
from torchcbl.lab.measures.base import Ground, Measure, Subject, UnfitError
from torchcbl.lab.measures.calibration import StepScores, score
from torchcbl.lab.measures.disturb.catalogue import CORRUPTIONS, SEVERITIES, VERSION, corrupt
from torchcbl.lab.measures.disturb.occluders import OCCLUSIONS, Crowd, occlude
from torchcbl.lab.measures.gallery import Gallery, as_images, choose
from torchcbl.lab.measures.store import About, Result
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.sources import SOURCES

SAMPLES = 1000
BATCH = 128
Raw = NDArray[np.uint8]


@dataclass(frozen=True)
class Disturbance:
    """What a run scored under one disturbance.

    Args:
        name: Its name.
        group: What it belongs to.
        grades: From mild to strong: severities, or per cent.
        scores: By grade.

    Raises:
        ValueError: There is not one score per grade.
    """

    name: str
    group: str
    grades: tuple[int, ...]
    scores: tuple[StepScores, ...]

    def __post_init__(self) -> None:
        if len(self.grades) != len(self.scores) or not self.grades:
            raise ValueError(f"{self.name} has {len(self.grades)} grades and {len(self.scores)} scores")

    def accuracy(self, step: int) -> float:
        """Mean accuracy over the grades at one step."""
        return float(np.mean([scores.accuracy[step] for scores in self.scores]))


@dataclass(frozen=True)
class Graded:
    """What a run scored on disturbed images.

    Args:
        about: Which run.
        clean: On the same images, undisturbed.
        disturbances: By disturbance.
        skipped: Names of those that do not fit the data, and why.

    Raises:
        ValueError: The steps differ, or nothing was measured.
    """

    about: About
    clean: StepScores
    disturbances: tuple[Disturbance, ...]
    skipped: Mapping[str, str]

    def __post_init__(self) -> None:
        depths = {len(scores.accuracy) for one in self.disturbances for scores in one.scores}
        if depths != {len(self.clean.accuracy)}:
            raise ValueError(f"{len(self.clean.accuracy)} steps on clean images, {sorted(depths)} on others")

    def mean(self, what: str, step: int, names: tuple[str, ...] | None = None) -> float:
        """Average "accuracy", "loss" or "ece" at one step over disturbances, all or some, and their grades alike."""
        chosen = [one for one in self.disturbances if names is None or one.name in names]
        return float(np.mean([np.mean([getattr(scores, what)[step] for scores in one.scores]) for one in chosen]))


class _GradedMeasure(Measure):
    """Score a run on every grade of every disturbance of one kind."""

    result = Graded

    def unfit(self, recipe: Recipe) -> str | None:
        """See `Measure.unfit`."""
        if SOURCES[recipe.data].noun != "image":
            return f"{recipe.data} is sound, and this kind disturbs images (kind 'noise' is for sound)"
        return None

    def prepare(self, ground: Ground) -> None:
        """See `Measure.prepare`."""
        assert isinstance(ground.dataset, ImageDataset)
        channels = ground.dataset.image_shape[0]
        if channels not in (1, 3):
            raise UnfitError(f"images have {channels} channels, and this kind takes 1 or 3")

    def settings(self, ground: Ground) -> Mapping[str, object]:
        """See `Measure.settings`."""
        assert isinstance(ground.dataset, ImageDataset)
        return {"n": min(ground.samples or SAMPLES, len(ground.dataset.test)), "version": VERSION}

    def measure(self, subject: Subject, ground: Ground) -> Graded:
        """See `Measure.measure`."""
        data = ground.dataset
        assert isinstance(data, ImageDataset)
        gallery = self._gallery(ground, data)
        return Graded(
            clean=_score(subject, data, gallery, gallery.pixels),
            disturbances=tuple(self._disturbances(subject, data, gallery)),
            skipped=self.skipped(data),
            about=subject.about(self.name, len(gallery.pixels), batch=BATCH, version=VERSION),
        )

    def headline(self, found: Result) -> str:
        """See `Measure.headline`."""
        assert isinstance(found, Graded)
        steps = range(len(found.clean.accuracy))
        mean = ", ".join(f"{100 * found.mean('accuracy', step):.2f}" for step in steps)
        return f"mean accuracy by step {mean}% ({100 * found.clean.accuracy[-1]:.2f}% undisturbed)"

    def skipped(self, data: ImageDataset) -> dict[str, str]:
        """Name what cannot be done to these images, and why."""
        return {}

    def _gallery(self, ground: Ground, data: ImageDataset) -> Gallery:
        if "gallery" not in ground.made:
            ground.made["gallery"] = choose(data, ground.samples or SAMPLES)
        gallery = ground.made["gallery"]
        assert isinstance(gallery, Gallery)
        return gallery

    def _disturbances(self, subject: Subject, data: ImageDataset, gallery: Gallery) -> Iterator[Disturbance]:
        skipped = self.skipped(data)
        for plan in self._plans(data, gallery):
            if plan.name not in skipped:
                shown = [
                    gallery.show(f"{plan.name}-{grade}", functools.partial(plan.make, grade)) for grade in plan.grades
                ]
                scores = tuple(_score(subject, data, gallery, raw) for raw in shown)
                yield Disturbance(plan.name, plan.group, plan.grades, scores)

    @abstractmethod
    def _plans(self, data: ImageDataset, gallery: Gallery) -> Iterator[_Plan]:
        """Go through the disturbances."""


@dataclass(frozen=True)
class _Plan:
    """A disturbance, its group, its grades, and what makes some images of a grade."""

    name: str
    group: str
    grades: tuple[int, ...]
    make: Callable[[int, slice], Raw]


class CorruptionMeasure(_GradedMeasure):
    """Score a run on corrupted images, five severities each (Hendrycks and Dietterich 2019, arXiv 1903.12261)."""

    name = "corruptions"

    def skipped(self, data: ImageDataset) -> dict[str, str]:
        """Name what cannot be done to these images, and why."""
        reasons = {name: one.unfit(data.image_shape[0]) for name, one in CORRUPTIONS.items()}
        return {name: reason for name, reason in reasons.items() if reason}

    def _plans(self, data: ImageDataset, gallery: Gallery) -> Iterator[_Plan]:
        def make(name: str, grade: int, part: slice) -> Raw:
            return corrupt(gallery.pixels[part], name, grade, gallery.indices[part])

        for name, one in CORRUPTIONS.items():
            yield _Plan(name, one.group, SEVERITIES, functools.partial(make, name))


class OcclusionMeasure(_GradedMeasure):
    """Score a run on images that are partly hidden, or cluttered with parts of others."""

    name = "occlusion"

    def _plans(self, data: ImageDataset, gallery: Gallery) -> Iterator[_Plan]:
        test = data.test
        crowd = Crowd(test.images.permute(0, 2, 3, 1).numpy(), test.labels.numpy())

        def make(name: str, grade: int, part: slice) -> Raw:
            return occlude(gallery.pixels[part], gallery.labels[part], name, grade, gallery.indices[part], crowd)

        for name, one in OCCLUSIONS.items():
            yield _Plan(name, one.group, one.shares, functools.partial(make, name))


def _score(subject: Subject, data: ImageDataset, gallery: Gallery, raw: Raw) -> StepScores:
    labels = torch.from_numpy(gallery.labels)
    return score(*subject.answers(normalised(data, as_images(raw), labels)))


def normalised(data: ImageDataset, images: Tensor, labels: Tensor, size: int = BATCH) -> Batches:
    """Cut images (N, C, H, W) into batches as a network was trained on, none of them of a single image.

    `shuffled-context` asks another sample of the batch.
    """
    while len(images) % size == 1 and size > 2:
        size -= 1
    return Batches(
        Images(images, labels, data.num_classes),
        mean=data.mean,
        std=data.std,
        batch_size=size,
        memory_format=torch.channels_last,
    )
