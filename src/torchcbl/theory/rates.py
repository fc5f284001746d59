"""Rates of convergence: predicted from eigenvalues, measured from steps, and the damping and steps they suggest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchcbl.checks import check_above_zero

if TYPE_CHECKING:
    from torchcbl.theory.contraction import Contraction

_WINDOW = 10
_NOISE = 100.0
"""Lengths below so many rounding units of the fixed point's norm are noise."""


@dataclass(frozen=True)
class Recommendation:
    """How to run a loop so that every sample of a batch settles.

    Args:
        alpha: Weight of the OLD state with the smallest asymptotic rate for the slowest sample: as `Picard(damping=
            alpha)` in a loop whose own alpha is 0, or as its own alpha if it has one site. None where no damping makes
            the loop settle.
        steps: T after which every relative residual is below the tolerance, at that rate. None likewise, and where a
            fixed point is 0.
        rate: The asymptotic rate of the slowest sample with that alpha.
        certified_steps: T after which every error ||s_T - s*|| is certainly below the tolerance times ||s*||; None
            where nothing below 1 is certified.
        tolerance: The tolerance.
        lost: For how many samples no fixed point was found.
    """

    alpha: float | None
    steps: int | None
    rate: float
    certified_steps: int | None
    tolerance: float
    lost: int = 0

    def __str__(self) -> str:
        if self.alpha is None:
            if self.lost:
                return (
                    f"no damping is known to make every sample settle, since no fixed point was found for {self.lost}: "
                    "train with jacobian_penalty or make_contractive, or take few steps, as trained"
                )
            return (
                f"no damping makes every sample settle (best rate {self.rate:.3g}): use solver='newton', 'anderson' or "
                "'broyden', or make_contractive"
            )
        if self.steps is None:
            return f"alpha = {self.alpha:.2g} at rate {self.rate:.3g}; a fixed point is 0, which nothing is relative to"
        certain = "" if self.certified_steps is None else f"; certified: error below it after {self.certified_steps}"
        return (
            f"alpha = {self.alpha:.2g}, T = {self.steps}: relative residual below {self.tolerance:g} at rate "
            f"{self.rate:.3g}{certain}"
        )


def damped_rate(eigenvalues: Tensor, alpha: float) -> Tensor:
    """Return max_i |alpha + (1 - alpha) lambda_i|, (B,), for eigenvalues (B, k)."""
    if not eigenvalues.shape[1]:
        return eigenvalues.abs().new_full((len(eigenvalues),), alpha)
    found: Tensor = (alpha + (1.0 - alpha) * eigenvalues).abs().amax(dim=1)
    return found


def geometric_rate(lengths: Tensor, point: Tensor) -> Tensor:
    """Return the geometric mean of the last ratios of successive lengths (K, B) above rounding, (B,).

    NaN where fewer than two lengths are above it, as where a loop is there at once.
    """
    floor = _NOISE * torch.finfo(lengths.dtype).eps * point.norm(dim=1)
    usable = ((lengths > floor) & lengths.isfinite()).cumprod(dim=0).bool()
    last = usable.sum(dim=0) - 1
    first = (last - _WINDOW).clamp(min=0)
    ratio = lengths.gather(0, last.clamp(min=0)[None])[0] / lengths.gather(0, first[None])[0]
    span = last - first
    return torch.where(span > 0, ratio ** (1.0 / span.clamp(min=1)), torch.nan)


def recommend(report: Contraction, tolerance: float) -> Recommendation:
    """See `Contraction.recommend`."""
    check_above_zero("recommend", "tolerance", tolerance)
    known = report.eigenvalues.isfinite().all(dim=1) & report.lengths[0].isfinite()
    eigenvalues = report.eigenvalues[known]
    alphas = torch.arange(0, 100) / 100
    rates = torch.stack(
        [damped_rate(eigenvalues, float(a)).amax() if len(eigenvalues) else torch.ones(()) for a in alphas]
    )
    best = int((rates <= rates.min() + 1e-3).nonzero()[0])
    alpha, rate = float(alphas[best]), float(rates[best])
    if rate >= 1.0 or not bool(known.all()):
        return Recommendation(None, None, rate, None, tolerance, int((~known).sum()))
    scale = (1.0 - alpha) / (1.0 - report.alpha) if report.alpha < 1.0 else 1.0
    first, size = report.lengths[0] * scale, report.fixed_point.norm(dim=1)
    start = float(torch.where(first == 0, 0.0, first / size).amax())
    if start == math.inf:  # the fixed point is 0
        return Recommendation(alpha, None, rate, None, tolerance)
    steps = 1 + _powers(tolerance / start, rate) if start > 0 else 1
    return Recommendation(alpha, steps, rate, _certified_steps(report, alpha, first, size, tolerance), tolerance)


def _certified_steps(report: Contraction, alpha: float, first: Tensor, size: Tensor, tolerance: float) -> int | None:
    """Return the smallest T with q^T / (1 - q) ||s_1 - s_0|| <= tolerance ||s*|| for every sample (Banach)."""
    if report.certified is None:
        return None
    rates = (alpha + (1.0 - alpha) * report.certified).tolist()
    if max(rates) >= 1.0:
        return None
    needed = [
        _powers(tolerance * norm * (1.0 - q) / length, q) if length > 0 else 0
        for q, length, norm in zip(rates, first.tolist(), size.tolist(), strict=True)
    ]
    return max(1, *needed)


def _powers(target: float, rate: float) -> int:
    """The smallest n >= 0 with rate^n <= target."""
    if target >= 1.0:
        return 0
    return 1 if rate <= 0.0 or target <= 0.0 else math.ceil(math.log(target) / math.log(rate))
