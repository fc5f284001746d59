"""What a refinement returns: all outputs, how much each step moved, and how each sample ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

CONVERGED_BELOW = 1e-4
DIVERGED_ABOVE = 10.0


class Status(IntEnum):
    """How one sample's refinement ended. Not converging is data, not an exception.

    Example:
        >>> Status.non_finite.name, int(Status.converged)
        ('non_finite', 0)
    """

    converged = 0
    """The last step moved the state by at most 1e-4 of its norm."""
    max_steps = 1
    """All steps were used and the state was still moving."""
    diverged = 2
    """The last step moved the state more than its own norm and over 10 times more than the first did."""
    non_finite = 3
    """An output of this sample holds NaN or infinity."""


@dataclass(init=False, repr=False, eq=False)  # DDP and FSDP2 find the tensors in one
class Refinement:
    """The outcome of `net.refine(x)`.

    Args:
        outputs: y_0..y_T, each (B, K), (B, N, K) or (B, K, H, W).
        residuals: (T, B), see the property; None to compute them from the outputs when they are asked for.
        returned: The backbone's own output at step T, with y_T (and, say, a loss from it) in it; None for y_T itself.

    Example:
        >>> r = Refinement((torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2, 3)))
        >>> r.residuals
        tensor([[1., 1.],
                [0., 0.]])
        >>> r.status.tolist() == [Status.converged] * 2
        True
    """

    outputs: tuple[Tensor, ...]
    returned: object

    def __init__(
        self, outputs: Sequence[Tensor], residuals: Tensor | None = None, returned: object | None = None
    ) -> None:
        self.outputs = tuple(outputs)
        self.returned = self.outputs[-1] if returned is None else returned
        self._residuals = residuals

    @property
    def output(self) -> Tensor:
        """y_T."""
        return self.outputs[-1]

    @property
    def residuals(self) -> Tensor:
        """How much step tau moved each sample's state s, (T, B): ||s_tau - s_{tau-1}|| / ||s_tau||, without gradients.

        s is what the schedule carries from step to step: y with `repropagate` and alpha = 0, else all hidden states.
        A state that stays at zero has residual 0.
        """
        if self._residuals is None:
            pairs = zip(self.outputs[1:], self.outputs, strict=False)
            rows = [relative_change((new,), (old,)) for new, old in pairs]
            batch = self.outputs[0].shape[0]
            self._residuals = torch.stack(rows) if rows else self.outputs[0].detach().new_zeros((0, batch))
        return self._residuals

    @property
    def steps(self) -> Tensor:
        """How many steps each sample took, (B,) int64."""
        first = self.outputs[0]
        return torch.full((first.shape[0],), len(self.outputs) - 1, dtype=torch.long, device=first.device)

    @property
    def status(self) -> Tensor:
        """How each sample ended, (B,) int64 with the values of `Status`."""
        first = self.outputs[0]
        status = torch.full_like(self.steps, Status.max_steps)
        residuals = self.residuals
        if len(residuals):
            last = residuals[-1]
            status[(last > 1.0) & (last > DIVERGED_ABOVE * residuals[0])] = Status.diverged
            status[last <= CONVERGED_BELOW] = Status.converged
        finite = torch.ones(first.shape[0], dtype=torch.bool, device=first.device)
        for output in self.outputs:
            finite &= output.detach().flatten(1).isfinite().all(dim=1)
        status[~finite] = Status.non_finite
        return status

    def __repr__(self) -> str:
        counts = torch.bincount(self.status, minlength=len(Status)).tolist()
        ends = ", ".join(f"{count} {status.name}" for status, count in zip(Status, counts, strict=True) if count)
        return f"Refinement(steps={len(self.outputs) - 1}, output={tuple(self.output.shape)}, status: {ends})"


def relative_change(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """Return ||new - old|| / ||new|| per sample, (B,), over several tensors with the batch first; no gradients."""
    with torch.no_grad():
        moved = torch.stack([(a - b).flatten(1).norm(dim=1) for a, b in zip(new, old, strict=True)]).norm(dim=0)
        size = torch.stack([a.flatten(1).norm(dim=1) for a in new]).norm(dim=0)
        return torch.where(moved == 0, torch.zeros_like(moved), moved / size)
