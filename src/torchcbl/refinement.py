"""What a refinement returns: all outputs, how much each step moved, and how each sample ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor

CONVERGED_BELOW = 1e-4
DIVERGED_ABOVE = 100.0


class Status(IntEnum):
    """How one sample's refinement ended. Not converging is data, not an exception.

    Example:
        >>> Status.non_finite.name, int(Status.converged)
        ('non_finite', 0)
    """

    converged = 0
    """The last step moved the state by at most the tolerance (1e-4 where the stopping rule has none) of its norm."""
    max_steps = 1
    """All steps were used and the state was still moving."""
    diverged = 2
    """The last step was over 100 times as long as the start s_0 and the first step together (a million times under
    solvers that need no contraction, whose way to a fixed point may lead far)."""
    non_finite = 3
    """An output of this sample holds NaN or infinity, padded positions left aside."""
    halted = 4
    """A stopping rule that does not speak of convergence, as `Confidence`, let it go while the state was moving."""


class RefinementError(RuntimeError):
    """Samples ended in a status that `raise_on` names; `status` (B,) says which.

    Args:
        message: What happened.
        status: How each sample ended.
    """

    def __init__(self, message: str, status: Tensor) -> None:
        super().__init__(message)
        self.status = status


@dataclass(init=False, repr=False, eq=False)  # DDP and FSDP2 find the tensors in one
class Refinement:
    """The outcome of `net.refine(x)`.

    Args:
        outputs: y_0..y_T, each (B, K), (B, N, K) or (B, K, H, W).
        path: How the state moved and how each sample ended; None to find it from the outputs when it is asked for.
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

    def __init__(self, outputs: Sequence[Tensor], path: Path | None = None, returned: object | None = None) -> None:
        self.outputs = tuple(outputs)
        self.returned = self.outputs[-1] if returned is None else returned
        self._path = path

    @property
    def output(self) -> Tensor:
        """y_T."""
        return self.outputs[-1]

    @property
    def path(self) -> Path:
        """How the state moved, without gradients."""
        if self._path is None:
            self._path = Path.from_states([(output,) for output in self.outputs], self.outputs)
        return self._path

    @property
    def residuals(self) -> Tensor:
        """How far from a fixed point each step was, (T, B): ||G(s) - s|| / ||G(s)||, without gradients.

        s is what one step hands to the next: y or z, whichever is smaller, with `repropagate` and alpha = 0, and all
        hidden states besides otherwise. In the plain loop G(s_{tau-1}) = s_tau, so that it is the relative change. A
        state that stays at zero has residual 0, and padded positions do not count. The last residual of a sample that
        was done stands for its remaining steps.
        """
        return self.path.residuals

    @property
    def steps(self) -> Tensor:
        """How many steps each sample took, (B,) int64."""
        return self.path.steps

    @property
    def evaluations(self) -> Tensor:
        """How often the loop was evaluated for each sample after step 0, (B,) int64: more than `steps` under solvers
        or gradient rules that need products with the Jacobian or further steps. What a backward pass adds is not in it.
        """
        return self.path.evaluations

    @property
    def status(self) -> Tensor:
        """How each sample ended, (B,) int64 with the values of `Status`."""
        return self.path.status

    def __repr__(self) -> str:
        counts = torch.bincount(self.status, minlength=len(Status)).tolist()
        ends = ", ".join(f"{count} {status.name}" for status, count in zip(Status, counts, strict=True) if count)
        return f"Refinement(steps={len(self.outputs) - 1}, output={tuple(self.output.shape)}, status: {ends})"


@dataclass(frozen=True)
class Path:
    """How the state of each sample moved, and how it ended; no gradients.

    Args:
        residuals: ||G(s) - s|| / ||G(s)||, (T, B).
        moved: ||G(s) - s||, (T, B).
        steps: How many steps each sample took, (B,).
        evaluations: How many evaluations, (B,).
        status: How each ended, (B,).
    """

    residuals: Tensor
    moved: Tensor
    steps: Tensor
    evaluations: Tensor
    status: Tensor

    @classmethod
    def from_states(cls, states: Sequence[Sequence[Tensor]], outputs: Sequence[Tensor]) -> Path:
        """Find it for a plain loop: s_0..s_T, each of one or more tensors with the batch first, and y_0..y_T."""
        pairs = list(zip(states[1:], states, strict=False))
        return cls.from_moves(norm(states[0]), [move(new, old) for new, old in pairs], outputs)

    @classmethod
    def from_moves(
        cls,
        start: Tensor,
        moves: Sequence[tuple[Tensor, Tensor]],
        outputs: Sequence[Tensor],
        real: Tensor | None = None,
    ) -> Path:
        """Find it for a plain loop from ||s_0|| and, for each step, its residual and length, (B,) each.

        `real` says which positions of the outputs are no padding, (B, N); None where all count.
        """
        steps = torch.full((len(start),), len(moves), dtype=torch.long, device=start.device)
        if not moves:
            nothing = start.new_zeros(0, len(start))
            residual, length, scale = torch.full_like(start, torch.inf), torch.zeros_like(start), start
            rows = nothing, nothing
        else:
            (residual, length), scale = moves[-1], start + moves[0][1]
            rows = torch.stack([one for one, _ in moves]), torch.stack([one for _, one in moves])
        finite = torch.stack([is_finite(output, real) for output in outputs]).all(dim=0)
        status = judge(residual, length, scale, finite)
        return cls(*rows, steps, steps, status)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the 2-norm per sample, (B,), of several tensors the batch first, in at least float32; no gradient."""
    with torch.no_grad():
        dtypes = [torch.promote_types(a.dtype, torch.float32) for a in tensors]
        parts = [torch.linalg.vector_norm(a.flatten(1), dim=1, dtype=t) for a, t in zip(tensors, dtypes, strict=True)]
        whole: Tensor = torch.linalg.vector_norm(torch.stack(parts), dim=0)
        return whole


def move(new: Sequence[Tensor], old: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ||new - old|| / ||new|| and ||new - old||, (B,) each; no gradients."""
    with torch.no_grad():
        length = norm([a - b for a, b in zip(new, old, strict=True)])
        return relative(length, norm(new)), length


def relative(length: Tensor, size: Tensor) -> Tensor:
    """Return length / size, 0 where nothing moved."""
    return torch.where(length == 0, length, length / size)


def is_finite(output: Tensor, real: Tensor | None = None) -> Tensor:
    """Say of each sample whether it holds neither NaN nor infinity, (B,).

    Args:
        output: The batch first.
        real: Which positions of (B, N, K) count, (B, N) of booleans; None for all.
    """
    finite = output.detach().isfinite()
    if real is not None:
        finite = finite | ~real[:, :, None]
    return finite.flatten(1).all(dim=1)


def judge(
    residual: Tensor,
    length: Tensor,
    scale: Tensor,
    finite: Tensor,
    tolerance: float | None = None,
    halted: Tensor | None = None,
    above: float = DIVERGED_ABOVE,
) -> Tensor:
    """Say how samples ended, (B,), by `Status`.

    Args:
        residual: The last ||G(s) - s|| / ||G(s)||, (B,).
        length: The last ||G(s) - s||.
        scale: ||s_0|| + ||G(s_0) - s_0||, against which divergence is measured.
        finite: Whether all is finite.
        tolerance: The residual that counts as converged; None for 1e-4.
        halted: Whether a stopping rule let it go.
        above: How many times as long as `scale` a step must be to have run away.
    """
    status = torch.full_like(residual, Status.max_steps, dtype=torch.long)
    if halted is not None:
        status = status.masked_fill(halted, Status.halted)
    status = status.masked_fill(length > above * scale, Status.diverged)
    small = residual <= (CONVERGED_BELOW if tolerance is None else tolerance)
    return status.masked_fill(small, Status.converged).masked_fill(~finite, Status.non_finite)
