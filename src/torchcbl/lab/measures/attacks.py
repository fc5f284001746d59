"""The kind `attacks`: FGSM, PGD and an ensemble of adaptive attacks, all through the whole unrolled loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from torchcbl.lab.data import ImageDataset
from torchcbl.lab.measures.attack.checks import Check
from torchcbl.lab.measures.attack.suite import Attack, AttackSuite, Budget, Part
from torchcbl.lab.measures.attack.threat import Attacked
from torchcbl.lab.measures.base import Ground, Measure, Subject
from torchcbl.lab.measures.calibration import StepScores
from torchcbl.lab.measures.gallery import Gallery, as_images, choose
from torchcbl.lab.measures.store import About, Result
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.sources import SOURCES

SAMPLES = 500


@dataclass(frozen=True)
class Attacks:
    """How a run stands attacks.

    Args:
        about: Which run.
        clean: The same images, unharmed.
        attacks: Attack by attack.
        parts: Of the ensemble, by eps.
        checks: Signs of hidden gradients.
        depends_on_batch: Whether an answer depends on the other samples of its batch.
        oracle: Whether the network is told the labels.

    Raises:
        ValueError: The steps differ.
    """

    about: About
    clean: StepScores
    attacks: tuple[Attack, ...]
    parts: tuple[Part, ...]
    checks: tuple[Check, ...]
    depends_on_batch: bool
    oracle: bool

    def __post_init__(self) -> None:
        depths = {len(one.accuracy) for one in self.attacks}
        if depths != {len(self.clean.accuracy)}:
            raise ValueError(f"{len(self.clean.accuracy)} steps without an attack, {sorted(depths)} under attack")

    def find(self, name: str, aim: str, eps: float) -> Attack | None:
        """Look one attack up."""
        return next((one for one in self.attacks if (one.name, one.aim, one.eps) == (name, aim, eps)), None)

    @property
    def suspicious(self) -> tuple[Check, ...]:
        """Checks that did not hold: its robustness must not be believed."""
        return tuple(check for check in self.checks if not check.passed)


class AttackMeasure(Measure):
    """Attack a run.

    Args:
        budget: How hard.
    """

    name = "attacks"
    result = Attacks

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()

    def unfit(self, recipe: Recipe) -> str | None:
        """See `Measure.unfit`."""
        if SOURCES[recipe.data].noun != "image":
            return f"{recipe.data} is sound, and these attacks change pixels in [0, 1]"
        return None

    def settings(self, ground: Ground) -> Mapping[str, object]:
        """See `Measure.settings`."""
        assert isinstance(ground.dataset, ImageDataset)
        budget = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self.budget).items()}
        return {"n": min(ground.samples or SAMPLES, len(ground.dataset.test)), **budget}

    def measure(self, subject: Subject, ground: Ground) -> Attacks:
        """See `Measure.measure`."""
        data = ground.dataset
        assert isinstance(data, ImageDataset)
        gallery = ground.made.setdefault("attacked", choose(data, ground.samples or SAMPLES))
        assert isinstance(gallery, Gallery)
        net = Attacked(subject.outputs, data.mean, data.std)
        pixels, labels = as_images(gallery.pixels).float() / 255, torch.from_numpy(gallery.labels)
        suite = AttackSuite(net, pixels, labels, gallery.indices.tolist(), self.budget)
        attacks, parts = suite.attacks()
        settings = {key: value for key, value in self.settings(ground).items() if key != "n"}
        return Attacks(
            clean=suite.clean,
            attacks=attacks,
            parts=parts,
            checks=suite.checks(attacks, parts),
            depends_on_batch=suite.depends_on_batch(),
            oracle=subject.arm.oracle,
            about=subject.about(self.name, len(labels), **settings),
        )

    def headline(self, found: Result) -> str:
        """See `Measure.headline`."""
        assert isinstance(found, Attacks)
        rows = ", ".join(f"{100 * part.square:.1f}% at {part.eps:g}/255" for part in found.parts)
        signs = f"; not to be believed: {len(found.suspicious)} signs of hidden gradients" if found.suspicious else ""
        return f"right under the ensemble {rows}{signs}"
