"""The kind `ambiguity`: do the probabilities agree with what people say, above all where people disagree?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from torchcbl.lab.data import ImageDataset
from torchcbl.lab.measures.base import Ground, Measure, Subject
from torchcbl.lab.measures.store import About, Result
from torchcbl.lab.measures.votes import Votes, load_votes
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.scores import named

TENTHS = 10


@dataclass(frozen=True)
class StepAmbiguity:
    """How the answers of one step agree with human votes q, p being the network's probabilities.

    Args:
        cross_entropy: Mean of -sum_k q_k log p_k, in nats.
        kl: Mean of sum_k q_k log(q_k / p_k), in nats: the same without the entropy of the votes.
        accuracy: Fraction of answers that are the label.
        majority: Fraction of answers that have the most votes; classes that tie for the most count alike.
        accuracy_by_tenth: The first, in each tenth of the images by entropy of the votes, from agreed to ambiguous.
        majority_by_tenth: The second, likewise.
        pearson: Correlation of the entropies of p and q over the images.
        spearman: Their rank correlation.
    """

    cross_entropy: float
    kl: float
    accuracy: float
    majority: float
    accuracy_by_tenth: tuple[float, ...]
    majority_by_tenth: tuple[float, ...]
    pearson: float
    spearman: float


@dataclass(frozen=True)
class Ambiguity:
    """How a run agrees with human votes.

    Args:
        about: Which run.
        steps: By step tau.
        human_entropy: Mean entropy of the votes in nats: the least that a cross entropy can be.
        entropy_by_tenth: The same of each tenth of the images.

    Raises:
        ValueError: There is no step.
    """

    about: About
    steps: tuple[StepAmbiguity, ...]
    human_entropy: float
    entropy_by_tenth: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.steps or {len(step.accuracy_by_tenth) for step in self.steps} != {len(self.entropy_by_tenth)}:
            raise ValueError("ambiguity needs a step, and every step the same tenths")


class AmbiguityMeasure(Measure):
    """Hold a run's probabilities against the votes of CIFAR-10H."""

    name = "ambiguity"
    result = Ambiguity

    def unfit(self, recipe: Recipe) -> str | None:
        """See `Measure.unfit`."""
        if recipe.data != "cifar10":
            return f"there are no human votes on {recipe.data}, only CIFAR-10H on the test part of cifar10"
        return None

    def prepare(self, ground: Ground) -> None:
        """See `Measure.prepare`."""
        self._votes(ground)

    def measure(self, subject: Subject, ground: Ground) -> Ambiguity:
        """See `Measure.measure`."""
        votes = self._votes(ground)
        batches = ground.dataset.batches("test", ground.recipe.batch_size, memory_format=torch.channels_last)
        logits, labels = subject.answers(batches)
        return Ambiguity(
            steps=tuple(agree(step, labels, votes) for step in logits),
            human_entropy=float(votes.entropy.mean()),
            entropy_by_tenth=tuple(float(votes.entropy[tenth].mean()) for tenth in tenths(votes.entropy)),
            about=subject.about(self.name, len(labels), people=float(votes.counts.sum(1).mean())),
        )

    def headline(self, found: Result) -> str:
        """See `Measure.headline`."""
        assert isinstance(found, Ambiguity)
        last = found.steps[-1]
        return (
            f"cross entropy to the votes {last.cross_entropy:.3f} nats (at least {found.human_entropy:.3f}), accuracy "
            f"on the most ambiguous tenth {100 * last.accuracy_by_tenth[-1]:.1f}%"
        )

    def _votes(self, ground: Ground) -> Votes:
        if "votes" not in ground.made:
            assert isinstance(ground.dataset, ImageDataset)
            ground.made["votes"] = load_votes(ground.folder, ground.dataset.test.labels.numpy())
        votes = ground.made["votes"]
        assert isinstance(votes, Votes)
        return votes


def agree(logits: Tensor, labels: Tensor, votes: Votes) -> StepAmbiguity:
    """Hold the answers of one step against the votes.

    Args:
        logits: (N, K).
        labels: (N,).
        votes: On the same images.

    Example:
        >>> sure = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
        >>> found = agree(sure, torch.tensor([0, 0]), Votes(np.array([[5, 5], [9, 1]])))
        >>> round(found.kl, 6), found.majority
        (0.0, 1.0)
    """
    log_p = logits.double().log_softmax(-1).numpy()
    answers, shares = named(logits, labels).numpy(), votes.shares
    cross = -(shares * log_p).sum(1)
    entropy = -(np.exp(log_p) * log_p).sum(1)
    right = answers == labels.numpy()
    favoured = votes.favourites[np.arange(len(answers)), answers]
    parts = tenths(votes.entropy)
    return StepAmbiguity(
        cross_entropy=float(cross.mean()),
        kl=float((cross - votes.entropy).mean()),
        accuracy=float(right.mean()),
        majority=float(favoured.mean()),
        accuracy_by_tenth=tuple(float(right[part].mean()) for part in parts),
        majority_by_tenth=tuple(float(favoured[part].mean()) for part in parts),
        pearson=_correlation(stats.pearsonr, entropy, votes.entropy),
        spearman=_correlation(stats.spearmanr, entropy, votes.entropy),
    )


def tenths(entropy: NDArray[np.float64]) -> list[NDArray[np.int64]]:
    """Sort images by entropy into tenths (fewer parts where there are fewer images); ties stay in their order.

    Example:
        >>> [part.tolist() for part in tenths(np.array([0.3, 0.1, 0.2]))]
        [[1], [2], [0]]
    """
    order = np.argsort(entropy, kind="stable")
    return [np.sort(part) for part in np.array_split(order, min(TENTHS, len(order)))]


def _correlation(correlate: object, first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0 or not np.isfinite(first).all():
        return float("nan")
    assert callable(correlate)
    return float(correlate(first, second).statistic)
