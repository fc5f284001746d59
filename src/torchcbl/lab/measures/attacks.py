"""The kind `attacks`: FGSM, PGD and an ensemble of adaptive attacks, all through the whole unrolled loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from torchcbl.lab.data import ImageDataset
from torchcbl.lab.measures.attack import checks
from torchcbl.lab.measures.attack.apgd import apgd
from torchcbl.lab.measures.attack.checks import Check
from torchcbl.lab.measures.attack.gradient import fgsm, pgd
from torchcbl.lab.measures.attack.square import square
from torchcbl.lab.measures.attack.threat import Attacked, Objective, dlr_on_step, on_step, on_sum
from torchcbl.lab.measures.base import Ground, Measure, Subject
from torchcbl.lab.measures.calibration import StepScores, correct, nll, score
from torchcbl.lab.measures.disturb.draws import randoms, uniform
from torchcbl.lab.measures.gallery import Gallery, as_images, choose
from torchcbl.lab.measures.store import About, Result
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.sources import SOURCES

SAMPLES = 500
SUM = "sum"
FGSM, PGD, ENSEMBLE = "fgsm", "pgd", "ensemble"


@dataclass(frozen=True)
class Budget:
    """How hard is tried.

    Args:
        eps: Radii of the L_inf ball, in 1/255.
        pgd_steps: Gradients of PGD.
        restarts: Of PGD.
        apgd_steps: Gradients of each APGD.
        queries: Of the Square attack.
        large: A radius within which any image can be reached, in 1/255.
        large_steps: Gradients of PGD at that radius.
    """

    eps: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    pgd_steps: int = 10
    restarts: int = 1
    apgd_steps: int = 30
    queries: int = 200
    large: float = 128.0
    large_steps: int = 20


@dataclass(frozen=True)
class Attack:
    """What one attack leaves.

    Args:
        name: "fgsm", "pgd" or "ensemble".
        aim: The step whose loss it raises, as "0", "1", ...; "sum" for the sum over all steps.
        eps: Radius, in 1/255.
        accuracy: Fraction of the images whose y_tau is right under this attack, by step tau.
        loss: Mean cross entropy of y_tau, likewise.

    Raises:
        ValueError: An accuracy is no fraction.
    """

    name: str
    aim: str
    eps: float
    accuracy: tuple[float, ...]
    loss: tuple[float, ...]

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in self.accuracy) or len(self.accuracy) != len(self.loss):
            raise ValueError(f"attack {self.name} needs fractions and losses by step, got {self.accuracy}, {self.loss}")


@dataclass(frozen=True)
class Part:
    """How many images are still right at y_T after each part of the ensemble, each on those that the last left.

    Args:
        eps: Radius, in 1/255.
        clean: Fraction right without an attack.
        apgd_ce: After APGD on the cross entropy.
        apgd_dlr: After APGD on the ratio of logits.
        square: After the Square attack.
    """

    eps: float
    clean: float
    apgd_ce: float
    apgd_dlr: float
    square: float


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


class AttackSuite:
    """All attacks on one network.

    Args:
        net: The network.
        pixels: In [0, 1], (N, C, H, W).
        labels: (N,).
        indices: Which images of the test part they are: what is drawn at random depends on it alone.
        budget: How hard is tried.
    """

    def __init__(self, net: Attacked, pixels: Tensor, labels: Tensor, indices: list[int], budget: Budget) -> None:
        self.net, self.x, self.y, self.indices, self.budget = net, pixels, labels, indices, budget
        logits = net.logits(pixels, labels)
        self.clean, self.right = score(logits, labels), correct(logits, labels)
        self.depth = len(logits)
        self.last = self.depth - 1
        self.starts = torch.stack([self._start("pgd", restart) for restart in range(budget.restarts)])

    def _start(self, name: str, restart: int) -> Tensor:
        drawn = uniform(randoms(f"attack-{name}", restart, self.indices), -1.0, 1.0, *self.x.shape[1:])
        return torch.from_numpy(drawn).to(self.x)

    def attacks(self) -> tuple[tuple[Attack, ...], tuple[Part, ...]]:
        """Make all of them, mildest first."""
        found, parts = [], []
        for eps in self.budget.eps:
            radius = eps / 255
            for step in range(self.depth):
                found.append(self._scored(FGSM, str(step), eps, fgsm(self.net, self.x, self.y, on_step(step), radius)))
            for step in range(self.depth):
                found.append(self._pgd(str(step), on_step(step), eps))
            if self.depth > 1:
                found.append(self._pgd(SUM, on_sum, eps))
            attacked, part = self._ensemble(eps)
            found.append(attacked)
            parts.append(part)
        return tuple(found), tuple(parts)

    def _pgd(self, aim: str, objective: Objective, eps: float) -> Attack:
        steps = self.budget.pgd_steps
        return self._scored(PGD, aim, eps, pgd(self.net, self.x, self.y, objective, eps / 255, self.starts, steps))

    def _scored(self, name: str, aim: str, eps: float, adversarial: Tensor) -> Attack:
        logits = self.net.logits(adversarial, self.y)
        accuracy = correct(logits, self.y).double().mean(1)
        return Attack(name, aim, eps, tuple(accuracy.tolist()), tuple(nll(logits, self.y).mean(1).tolist()))

    def _ensemble(self, eps: float) -> tuple[Attack, Part]:
        """Attack what is right at y_T by one attack after the other, each time what the one before left right."""
        radius, budget, adversarial = eps / 255, self.budget, self.x.clone()
        left, counts = self.right[self.last].clone(), [float(self.right[self.last].double().mean())]
        objectives = [on_step(self.last), *([dlr_on_step(self.last)] if self.net_classes >= 3 else [])]
        for number, objective in enumerate(objectives):
            start = self._start("apgd", number)[left]
            tried = apgd(self.net, self.x[left], self.y[left], objective, self.last, radius, start, budget.apgd_steps)
            left = self._keep(adversarial, left, tried, always=number == 0)
            counts.append(float(left.double().mean()))
        counts += [counts[-1]] * (3 - len(counts))
        channels, width = self.x.shape[1], self.x.shape[3]
        generators = [
            one for one, kept in zip(randoms("attack-square", 0, self.indices), left.tolist(), strict=True) if kept
        ]
        if generators:
            stripes = torch.from_numpy(uniform(generators, 0.0, 1.0, channels, width))
            draws = torch.from_numpy(uniform(generators, 0.0, 1.0, budget.queries, 2 + channels))
            tried = square(self.net, self.x[left], self.y[left], self.last, radius, draws, stripes)
            left = self._keep(adversarial, left, tried, always=False)
        counts.append(float(left.double().mean()))
        return self._scored(ENSEMBLE, str(self.last), eps, adversarial), Part(eps, *counts)

    @property
    def net_classes(self) -> int:
        """K."""
        return int(self.net.logits(self.x[:2], self.y[:2]).shape[-1])

    def _keep(self, adversarial: Tensor, left: Tensor, tried: Tensor, always: bool) -> Tensor:
        """Take over the points that fool y_T, or all of them; say which images are still right."""
        places = left.nonzero()[:, 0]
        if not len(places):
            return left
        whole = adversarial.clone()
        whole[places] = tried
        # Seen in the batches that accuracies are taken in, since answers may depend on the others there.
        fooled = ~correct(self.net.logits(whole, self.y), self.y)[self.last][places]
        taken = torch.ones_like(fooled) if always else fooled
        adversarial[places[taken]] = tried[taken]
        left = left.clone()
        left[places[fooled]] = False
        return left

    def checks(self, attacks: tuple[Attack, ...], parts: tuple[Part, ...]) -> tuple[Check, ...]:
        """Look for signs that gradients are hidden."""
        n, last = len(self.y), str(self.last)
        found = {(one.name, one.aim, one.eps): one for one in attacks}

        def at_last(name: str, aim: str) -> dict[float, float]:
            return {eps: found[name, aim, eps].accuracy[-1] for eps in self.budget.eps}

        slope = self.net.gradient(self.x, self.y, on_step(self.last))[1]
        zero = int((slope.flatten(1).abs().amax(1) == 0).sum())
        made = [
            checks.no_zero_gradients(zero, n),
            checks.stronger("many steps beat one", at_last(PGD, last), at_last(FGSM, last), n, ("PGD", "FGSM")),
            checks.rises(at_last(PGD, last), {eps: found[PGD, last, eps].loss[-1] for eps in self.budget.eps}, n),
            checks.falls_to_nothing(self._at_large(), self.budget.large),
            checks.black_box_adds_little({part.eps: part.apgd_dlr - part.square for part in parts}),
        ]
        if self.depth > 1:
            names = (f"the attack on y_{last}", "the one on y_0 alone")
            adaptive, blind = at_last(PGD, last), at_last(PGD, "0")
            made.insert(1, checks.stronger("seeing the loop helps the attacker", adaptive, blind, n, names))
        return tuple(made)

    def _at_large(self) -> float:
        radius, steps = self.budget.large / 255, self.budget.large_steps
        far = pgd(self.net, self.x, self.y, on_step(self.last), radius, self.starts[:1], steps)
        return float(correct(self.net.logits(far, self.y), self.y)[self.last].double().mean())

    def depends_on_batch(self) -> bool:
        """Whether an answer changes with the other samples of its batch."""
        few = min(len(self.x), 8)
        if few < 4:
            return False
        whole = self.net.logits(self.x[:few], self.y[:few])
        part = self.net.logits(self.x[: few - 2], self.y[: few - 2])
        return not torch.allclose(whole[:, : few - 2], part, rtol=1e-3, atol=1e-3)
