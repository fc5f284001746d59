"""When a sample's refinement ends: by its residual, its confidence, its answer, or never before T."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_above_zero, check_count

Memory = object


@dataclass(frozen=True)
class Progress:
    """What a stopping rule may look at after a step; all of it sample by sample, without gradients.

    Args:
        step: tau >= 1.
        residual: ||G(s) - s|| / ||G(s)||, (B,).
        output: y_tau, (B, K), (B, N, K) or (B, K, H, W).
        previous: y_{tau-1}.
        real: Which positions of y (B, N, K) are no padding, (B, N) of booleans; None where all count.
    """

    step: int
    residual: Tensor
    output: Tensor
    previous: Tensor
    real: Tensor | None = None

    def everywhere(self, which: Tensor) -> Tensor:
        """Say of each sample, (B,), whether something holds at each of its positions that is no padding."""
        if self.real is not None and self.real.shape == which.shape:
            which = which | ~self.real
        return which.flatten(1).all(dim=1) if which.ndim > 1 else which


class Halting(ABC):
    """Say after each step which samples are done.

    Rules are combined: `a | b` ends a sample when one of them would, `a & b` when both would at the same step.
    """

    def begin(self) -> Memory:
        """Return what is remembered before the first step: tensors with the batch first, in tuples."""
        return ()

    @abstractmethod
    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Return which samples are done, (B,) of booleans, and what is remembered of each."""

    @property
    def tolerance(self) -> float | None:
        """The residual at which a sample counts as converged, where the rule has one."""
        return None

    def __or__(self, other: Halting) -> Halting:
        return Either(self, other)

    def __and__(self, other: Halting) -> Halting:
        return Both(self, other)


@dataclass(frozen=True)
class Never(Halting):
    """Take all T steps, whatever happens.

    Example:
        >>> Never() | Tolerance(1e-3)
        Either(first=Never(), second=Tolerance(residual=0.001))
    """

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Nobody is."""
        return torch.zeros_like(progress.residual, dtype=torch.bool), memory


@dataclass(frozen=True)
class Tolerance(Halting):
    """End a sample when its relative residual is small.

        ||G(s) - s|| <= residual * ||G(s)||

    Args:
        residual: Above 0. In float32 not below about 1e-6, in bfloat16 not below 1e-2: rounding may never let it
            through (`rounding_floor`).

    Raises:
        ValueError: It is not above 0.

    Example:
        >>> Tolerance(1e-4)
        Tolerance(residual=0.0001)
    """

    residual: float = 1e-4

    def __post_init__(self) -> None:
        check_above_zero("Tolerance", "residual", self.residual)

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Those whose residual is at most the tolerance."""
        return progress.residual <= self.residual, memory

    @property
    def tolerance(self) -> float:
        """The residual itself."""
        return self.residual


def rounding_floor(*dtypes: torch.dtype) -> float:
    """Return the relative residual below which rounding may let no sample get: two units of the lowest precision.

    Example:
        >>> rounding_floor(torch.float32, torch.bfloat16)
        0.015625
    """
    return max(2 * torch.finfo(dtype).eps for dtype in dtypes)


@dataclass(frozen=True)
class Confidence(Halting):
    """End a sample when its largest class probability is high, at every position where it has several.

        max_k softmax(y)_k >= probability

    Says nothing about convergence: it saves steps on easy samples, as early exits do. Positions that the call's
    `attention_mask` names as padding are not asked.

    Args:
        probability: In (0, 1].

    Raises:
        ValueError: It is out of its range.

    Source:
        Teerapittayanon et al. 2016, BranchyNet, arXiv 1709.01686.

    Example:
        >>> Confidence(0.99) & Tolerance(1e-2)
        Both(first=Confidence(probability=0.99), second=Tolerance(residual=0.01))
    """

    probability: float = 0.99

    def __post_init__(self) -> None:
        check_above_zero("Confidence", "probability", self.probability)
        if self.probability > 1.0:
            raise ValueError(f"Confidence's probability must lie in (0, 1], got {self.probability}.")

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Those whose least confident position is confident enough."""
        y = progress.output
        y, axis = y.to(torch.promote_types(y.dtype, torch.float32)), _several_classes(self, y)
        sure = y.softmax(dim=axis).amax(dim=axis) >= self.probability
        return progress.everywhere(sure), memory


@dataclass(frozen=True)
class Agreement(Halting):
    """End a sample when its answer, argmax_k y_k, has been the same for some steps running, padding left aside.

    Args:
        steps: How many steps must give the answer of the one before, at least 1; 1 ends at the first repetition.

    Raises:
        ValueError: It is below 1.

    Source:
        Patience-based early exit: Zhou et al. 2020, BERT Loses Patience, arXiv 2006.04152.

    Example:
        >>> Agreement(steps=2)
        Agreement(steps=2)
    """

    steps: int = 2

    def __post_init__(self) -> None:
        check_count("Agreement", "steps", self.steps)

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Those whose run of equal answers is long enough; the run is remembered."""
        y, before = progress.output, progress.previous
        axis = _several_classes(self, y)
        same = progress.everywhere(y.argmax(dim=axis) == before.argmax(dim=axis))
        run = memory[0] if isinstance(memory, tuple) and memory else torch.zeros_like(same, dtype=torch.long)
        run = torch.where(same & progress.everywhere(y.isfinite().all(dim=axis)), run + 1, 0)
        return run >= self.steps, (run,)


@dataclass(frozen=True)
class _Pair(Halting):
    """Two rules."""

    first: Halting
    second: Halting

    def __post_init__(self) -> None:
        for rule in (self.first, self.second):
            check_halting(rule)

    def begin(self) -> Memory:
        """What both remember."""
        return self.first.begin(), self.second.begin()

    def _both(self, progress: Progress, memory: Memory) -> tuple[Tensor, Tensor, Memory]:
        assert isinstance(memory, tuple)
        first, one = self.first.done(progress, memory[0])
        second, two = self.second.done(progress, memory[1])
        return first, second, (one, two)

    @property
    def tolerance(self) -> float | None:
        """The smaller of theirs."""
        found = [rule.tolerance for rule in (self.first, self.second) if rule.tolerance is not None]
        return min(found, default=None)


class Either(_Pair):
    """End a sample when one of two rules would."""

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Those that either lets go."""
        first, second, memory = self._both(progress, memory)
        return first | second, memory


class Both(_Pair):
    """End a sample when both of two rules would at the same step."""

    def done(self, progress: Progress, memory: Memory) -> tuple[Tensor, Memory]:
        """Those that both let go."""
        first, second, memory = self._both(progress, memory)
        return first & second, memory


def class_axis(y: Tensor) -> int:
    """Which axis of an output the classes are on: the last, or axis 1 of (B, K, H, W)."""
    return 1 if y.ndim > 3 else -1


def _several_classes(rule: Halting, y: Tensor) -> int:
    """Return the axis of the classes.

    Raises:
        ValueError: There is but one, which would be certain whatever y holds.
    """
    axis = class_axis(y)
    if y.shape[axis] == 1:
        raise ValueError(
            f"{type(rule).__name__} compares classes, and y of shape {tuple(y.shape)} has one on axis {axis % y.ndim}: "
            "use Tolerance, or a backbone with one output per class."
        )
    return axis


def check_halting(rule: object) -> Halting:
    """Return a stopping rule, `Never()` for None.

    Raises:
        TypeError: It is none.
    """
    if rule is None:
        return Never()
    if not isinstance(rule, Halting):
        got = f"the class {rule.__name__}: pass an object, {rule.__name__}()" if isinstance(rule, type) else repr(rule)
        raise TypeError(
            f"halting must be a stopping rule such as Tolerance(1e-4), Confidence(0.99), Agreement(2) or Never(), got "
            f"{got}."
        )
    return rule
