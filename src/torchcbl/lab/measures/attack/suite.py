"""All attacks on one network, and the signs that its gradients are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.lab.measures.attack import checks
from torchcbl.lab.measures.attack.apgd import apgd
from torchcbl.lab.measures.attack.checks import Check
from torchcbl.lab.measures.attack.gradient import fgsm, pgd
from torchcbl.lab.measures.attack.square import square
from torchcbl.lab.measures.attack.threat import Attacked, Objective, dlr_on_step, on_step, on_sum
from torchcbl.lab.measures.calibration import correct, nll, score
from torchcbl.lab.measures.disturb.draws import randoms, uniform

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
        large: A radius within which every image can be made nearly the same grey, in 1/255.
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
            checks.black_box_adds_little({part.eps: part.apgd_dlr - part.square for part in parts}, n),
        ]
        if self.depth > 1:
            names = (f"the attack on y_{last}", "the one on y_0 alone")
            adaptive, blind = at_last(PGD, last), at_last(PGD, "0")
            made.insert(1, checks.stronger(checks.SEES_THE_LOOP, adaptive, blind, n, names))
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
