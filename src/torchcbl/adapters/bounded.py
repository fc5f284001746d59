"""A linear layer whose spectral norm cannot exceed a limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcbl.transforms import in_transform

_MARGIN = 1e-5
"""For what float32 rounds; lower precision takes two of its rounding units."""
_thread = threading.local()
T = TypeVar("T")


class BoundedLinear(nn.Linear):
    """Compute y = W' x + b with W' = W min(1, limit / ||W||_2).

    ||W||_2 is the largest singular value, computed and not estimated by power iteration, which would come out too low.
    The parameters are those of the layer it stands for, so optimisers and saved weights go on; gradients flow through
    the norm. The steps of one call of a loop share one SVD.

    Args:
        linear: The layer whose parameters it takes.
        limit: The largest norm, above 0; `inf` for none. In a loop, that of the latest call; a call that is under way
            keeps its own, whatever others have set since (`bounds_kept`).
    """

    def __init__(self, linear: nn.Linear, limit: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.limit = limit
        self.training = linear.training

    def bounded_weight(self) -> Tensor:
        """Return W'."""
        if self._limit_now() == float("inf"):
            return self.weight
        exact = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))
        if torch.compiler.is_compiling() or in_transform():  # where a tensor stands for others
            return self._scaled(_norm(exact))
        if not (self.weight.requires_grad and torch.is_grad_enabled()):
            return self._kept("weight", lambda: self._scaled(_norm(exact)))
        norm, slope = self._kept("norm", lambda: _norm_and_slope(exact.detach()))
        return self._scaled(_Norm.apply(exact, norm, slope))  # type: ignore[no-untyped-call]

    def _limit_now(self) -> float:
        """Return the limit of the call that this thread is in, where there is one and no compiled program."""
        if torch.compiler.is_compiling():
            return self.limit
        return limits_kept().get(self, self.limit)

    def _scaled(self, norm: Tensor) -> Tensor:
        limit = self._limit_now() * (1 - max(_MARGIN, 2 * torch.finfo(self.weight.dtype).eps))
        return self.weight * (limit / norm.clamp(min=limit)).to(self.weight.dtype)

    def _kept(self, name: str, compute: Callable[[], T]) -> T:
        """Compute something of the weight, once where `bounds_kept` is open and weight and limit stay the same."""
        known = getattr(_thread, "known", None)
        if known is None or self.weight.is_inference():  # which has no version
            return compute()
        key, now = (self, name), (self.weight._version, self.weight.data_ptr(), self._limit_now())
        if key not in known or known[key][0] != now:
            with torch.inference_mode(False), torch.no_grad():  # it may be used in another mode than this
                known[key] = now, compute()
        found: T = known[key][1]
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Apply the bounded map."""
        return F.linear(x, self.bounded_weight(), self.bias)

    def extra_repr(self) -> str:
        """Add the limit."""
        return f"{super().extra_repr()}, limit={self.limit:.3g}"


Limits = Mapping[BoundedLinear, float]


@contextlib.contextmanager
def bounds_kept(limits: Limits | None = None) -> Iterator[None]:
    """Compute what bounds each weight once for as long as this is open in this thread, and by these limits if given."""
    outer = getattr(_thread, "known", None), limits_kept()
    _thread.known, _thread.limits = {}, limits or {}
    try:
        yield
    finally:
        _thread.known, _thread.limits = outer


def limits_kept() -> Limits:
    """Return the limits that hold in this thread for layers whose own are those of the latest call."""
    found: Limits = getattr(_thread, "limits", {})
    return found


def _norm(weight: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.matrix_norm(weight, ord=2)
    return norm


def _norm_and_slope(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return ||W||_2 and its gradient: u v^T of the largest singular value, the mean where several are equal."""
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    largest = (s == s.amax()).to(s.dtype)
    return s.amax(), (u * (largest / largest.sum())) @ vh


class _Norm(torch.autograd.Function):
    """||W||_2, known with its gradient: every step has a graph of its own, and none computes it again."""

    @staticmethod
    def forward(ctx, weight: Tensor, norm: Tensor, slope: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(weight, slope)
        ctx.save_for_forward(slope)
        return norm.view_as(norm)

    @staticmethod
    def jvp(ctx, weight: Tensor, norm: None, slope: None) -> Tensor:  # type: ignore[no-untyped-def]
        del norm, slope
        (known,) = ctx.saved_tensors
        moved: Tensor = (known * weight).sum()
        return moved

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        weight, slope = ctx.saved_tensors
        if torch.is_grad_enabled():  # it is differentiated again, and the slope depends on the weight
            (slope,) = torch.autograd.grad(_norm(weight), weight, create_graph=True)
        return gradient * slope, None, None


def weight_of(linear: nn.Linear) -> Tensor:
    """Return the weight that a linear layer computes with."""
    return linear.bounded_weight() if isinstance(linear, BoundedLinear) else linear.weight
