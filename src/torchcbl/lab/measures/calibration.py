"""How right a network is, and how right it says it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.lab.scores import named

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """Answers by confidence, in bins of equal width: bin b holds confidences in (b / 15, (b + 1) / 15].

    Args:
        count: How many answers are in each bin.
        confidence: Their mean confidence, max_k p_k; NaN in an empty bin.
        accuracy: Which fraction of them is right; NaN in an empty bin.

    Raises:
        ValueError: The three are not of one length.
    """

    count: tuple[int, ...]
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.count) == len(self.confidence) == len(self.accuracy) > 0:
            lengths = (len(self.count), len(self.confidence), len(self.accuracy))
            raise ValueError(f"reliability needs count, confidence and accuracy of each bin, got {lengths} of them")

    @property
    def ece(self) -> float:
        """Expected calibration error, in [0, 1] (Guo et al. 2017, arXiv 1706.04599).

        sum_b n_b / n |accuracy_b - confidence_b|
        """
        rows = zip(self.count, self.confidence, self.accuracy, strict=True)
        return sum(count * abs(accuracy - confidence) for count, confidence, accuracy in rows if count) / sum(
            self.count
        )


def reliability(logits: Tensor, labels: Tensor, bins: int = NUM_BINS) -> Reliability:
    """Sort answers by confidence.

    Args:
        logits: (N, K).
        labels: (N,).
        bins: How many bins, at least 1.

    Returns:
        The bins; where an answer is not finite, its bin is the last and the mean confidence there NaN.

    Example:
        >>> found = reliability(torch.tensor([[0.9, 0.1], [0.7, 0.3]]).log(), torch.tensor([0, 1]), bins=2)
        >>> found.count, round(found.ece, 3)
        ((0, 2), 0.3)
    """
    confidence, right = logits.double().softmax(-1).amax(-1), correct(logits, labels).double()
    place = (confidence.nan_to_num(1.0) * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, weights=values, minlength=bins) / count for values in (confidence, right)]
    means, accuracy = (tuple(values.tolist()) for values in sums)
    return Reliability(tuple(count.tolist()), means, accuracy)


@dataclass(frozen=True)
class StepScores:
    """How right the answers of every step tau are.

    Args:
        accuracy: Fraction classified rightly, in [0, 1].
        loss: Mean negative log-likelihood, -log p_label, in nats.
        ece: Expected calibration error, in [0, 1].

    Raises:
        ValueError: The three are not of one length, or an accuracy is no fraction.
    """

    accuracy: tuple[float, ...]
    loss: tuple[float, ...]
    ece: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.accuracy) == len(self.loss) == len(self.ece) > 0:
            lengths = (len(self.accuracy), len(self.loss), len(self.ece))
            raise ValueError(f"scores need accuracy, loss and ece of each step, got {lengths} of them")
        if not all(0 <= value <= 1 for value in self.accuracy):
            raise ValueError(f"accuracy must be fractions in [0, 1], got {list(self.accuracy)}")


def score(logits: Tensor, labels: Tensor) -> StepScores:
    """Score the answers of every step.

    Args:
        logits: (T + 1, N, K).
        labels: (N,).

    Example:
        >>> found = score(torch.zeros(1, 4, 2), torch.tensor([0, 0, 0, 1]))
        >>> found.accuracy, [round(loss, 3) for loss in found.loss], [round(ece, 3) for ece in found.ece]
        ((0.75,), [0.693], [0.25])
    """
    return StepScores(
        accuracy=tuple(correct(logits, labels).double().mean(1).tolist()),
        loss=tuple(nll(logits, labels).mean(1).tolist()),
        ece=tuple(reliability(step, labels).ece for step in logits),
    )


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Say which answers (..., N, K) are right, (..., N) of booleans; one with a NaN in it is no answer, and wrong."""
    return named(logits, labels) == labels


def nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the negative log-likelihood of every answer, (T + 1, N), in float64."""
    log_p = logits.double().log_softmax(-1)
    return -log_p.gather(-1, labels.expand(log_p.shape[:-1]).unsqueeze(-1)).squeeze(-1)


def brier(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean Brier score of every step, (T + 1,), in [0, 2]: sum_k (p_k - [k = label])^2 (Brier 1950).

    Example:
        >>> brier(torch.zeros(1, 1, 2), torch.tensor([0]))
        tensor([0.5000], dtype=torch.float64)
    """
    p = logits.double().softmax(-1)
    return (p - torch.nn.functional.one_hot(labels, p.shape[-1])).square().sum(-1).mean(-1)
