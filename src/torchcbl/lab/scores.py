"""Loss, accuracy and confusion at every step tau, summed over batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torchcbl.lab.records import mean_recall


def named(logits: Tensor, target: Tensor) -> Tensor:
    """Return the class that logits (..., B, K) name for samples of the classes (B,): (..., B).

    Logits with a NaN name none, as those of a run that diverged: they count as the class after the sample's own, and so
    as wrong, where an argmax would call them all class 0.

    Example:
        >>> named(torch.tensor([[0.1, 0.9], [torch.nan, 0.0], [torch.nan, torch.nan]]), torch.tensor([1, 0, 1]))
        tensor([1, 1, 0])
    """
    wrong = (target + 1) % logits.shape[-1]
    return torch.where(logits.isnan().any(-1), wrong, logits.argmax(-1))


class Scores:
    """Sum up cross entropy and answers by class per step tau; nothing leaves the device until it is asked for.

    Example:
        >>> scores = Scores()
        >>> scores.add([torch.tensor([[2.0, 0.0], [2.0, 0.0]])], torch.tensor([0, 1]))
        >>> scores.n, scores.accuracy
        (2, (0.5,))
        >>> scores.confusion
        (((1, 0), (1, 0)),)
    """

    def __init__(self) -> None:
        self.n = 0
        self._losses: Tensor | None = None
        self._counts: Tensor | None = None

    def add(self, outputs: Sequence[Tensor], target: Tensor) -> None:
        """Add a batch.

        Args:
            outputs: Logits y_0..y_T, each (B, K).
            target: Classes (B,).
        """
        stacked = torch.stack(tuple(outputs)).detach()
        losses = torch.stack([F.cross_entropy(y.float(), target, reduction="sum") for y in stacked])
        k = stacked.shape[-1]
        cells = target * k + named(stacked, target)
        counts = torch.stack([torch.bincount(row, minlength=k * k) for row in cells]).view(-1, k, k)
        self._losses = losses if self._losses is None else self._losses + losses
        self._counts = counts if self._counts is None else self._counts + counts
        self.n += len(target)

    def sum_up(self, add: Callable[[Tensor], Tensor]) -> None:
        """Add up with the scores of other processes.

        Args:
            add: Gives the sum over all processes of a tensor that each has.
        """
        assert self._losses is not None
        assert self._counts is not None
        self._losses, self._counts = add(self._losses), add(self._counts)
        self.n = int(add(torch.tensor(self.n, device=self._counts.device)))

    @property
    def loss(self) -> tuple[float, ...]:
        """Mean cross entropy per step tau."""
        assert self._losses is not None
        return tuple(value / self.n for value in self._losses.tolist())

    @property
    def accuracy(self) -> tuple[float, ...]:
        """Fraction of right answers per step tau."""
        assert self._counts is not None
        return tuple(value / self.n for value in self._counts.diagonal(dim1=1, dim2=2).sum(1).tolist())

    @property
    def confusion(self) -> tuple[tuple[tuple[int, ...], ...], ...]:
        """How many samples of each class (row) were taken for each class (column), per step tau."""
        assert self._counts is not None
        return tuple(tuple(tuple(row) for row in matrix) for matrix in self._counts.tolist())

    @property
    def balanced_accuracy(self) -> tuple[float, ...]:
        """Mean over the classes of the fraction of right answers, per step tau; classes without samples left out."""
        return tuple(mean_recall(matrix) for matrix in self.confusion)
