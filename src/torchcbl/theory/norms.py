"""Upper bounds of the spectral norms of layers. Each one holds exactly, up to the rounding of float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, prod, sqrt

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.utils.weak import WeakTensorKeyDictionary

from torchcbl.adapters.bounded import BoundedLinear, weight_of
from torchcbl.theory.reach import NoBoundError

_MOST_WORK = 2e9
"""Above so many multiply-adds of eigenvalue work a convolution is bounded by its kernel alone."""
_known = WeakTensorKeyDictionary()
"""Of each weight, by what it was bounded for: its version then, and the bound."""


def matrix_norm(weight: Tensor) -> float:
    """Return the spectral norm of a matrix."""
    if not weight.numel():
        return 0.0
    _check_finite(weight)
    return float(torch.linalg.matrix_norm(weight.detach().double(), ord=2))


def linear_norm(linear: nn.Linear) -> float:
    """Return the spectral norm of a linear layer as it computes now, remembered until its weight changes."""
    if isinstance(linear, BoundedLinear):
        return matrix_norm(linear.bounded_weight())
    return _remembered(linear.weight, (), lambda: matrix_norm(linear.weight))


def current_weight(linear: nn.Linear) -> Tensor:
    """Return the weight that a linear layer computes with, in float64, without its gradient."""
    return weight_of(linear).detach().double()


def conv_norm(conv: _ConvNd, sizes: Sequence[int]) -> float:
    """Bound the spectral norm of a convolution on inputs of spatial sizes (H, W) (of a transposed one: its outputs).

    A convolution with zero padding is a part of the circular one on a grid on which the kernel does not wrap around,
    and a strided one a part of the one with stride 1; the circular one's norm is the largest over frequencies of
    the norm of the kernel's transform. Where that is much work, sqrt(taps) times the norm of the unfolded kernel.

    Raises:
        NoBoundError: Its padding repeats entries.

    Source:
        Sedghi, Gupta and Long 2019, arXiv 1805.10408; Singla and Feizi 2021, arXiv 1911.10258 (the unfolded kernel).
    """
    if conv.padding_mode not in ("zeros", "circular"):
        raise NoBoundError(f"{type(conv).__name__} with padding_mode={conv.padding_mode!r} repeats entries")
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    wrap = conv.padding_mode == "circular"
    grid = tuple(n if wrap else n + r for n, r in zip(sizes, reach, strict=True))
    weight = conv.weight

    def compute() -> float:
        _check_finite(weight)
        # (groups, out, in, *taps); a transposed one is the adjoint of the one that its weight belongs to
        kernel = weight.detach().double().reshape(conv.groups, -1, *weight.shape[1:])
        small = min(kernel.shape[1:3])
        work = conv.groups * prod(grid) * small**3
        return _unfolded(kernel) if work > _MOST_WORK else _by_frequency(kernel, conv.dilation, grid)

    norm = _remembered(weight, (*grid, conv.groups, *conv.dilation), compute)
    return norm * sqrt(_wraps(conv, sizes, reach))


def _wraps(conv: _ConvNd, sizes: Sequence[int], reach: Sequence[int]) -> int:
    """How often circular padding winds the outputs around: each time they are a part of the circular convolution's."""
    if conv.padding_mode != "circular":
        return 1
    pads = conv._reversed_padding_repeated_twice[::-1]  # two for each axis
    spans = [n + pads[2 * i] + pads[2 * i + 1] - r for i, (n, r) in enumerate(zip(sizes, reach, strict=True))]
    return prod(max(1, ceil(span / n)) for span, n in zip(spans, sizes, strict=True))


def _by_frequency(kernel: Tensor, dilation: Sequence[int], grid: Sequence[int]) -> float:
    """Largest norm of the transform of a kernel (G, out, in, *taps) over the frequencies of a grid."""
    places = torch.zeros(*kernel.shape[:3], *grid, dtype=kernel.dtype, device=kernel.device)
    for tap in torch.cartesian_prod(*[torch.arange(k) for k in kernel.shape[3:]]).reshape(-1, kernel.ndim - 3).tolist():
        place = tuple(t * d % n for t, d, n in zip(tap, dilation, grid, strict=True))
        places[(..., *place)] += kernel[(..., *tap)]
    axes = tuple(range(3, kernel.ndim))
    symbol = torch.fft.rfftn(places, dim=axes).flatten(3).movedim(3, 1)  # the kernel is real: half of them suffice
    gram = symbol @ symbol.mH if symbol.shape[2] <= symbol.shape[3] else symbol.mH @ symbol
    return float(torch.linalg.eigvalsh(gram).amax().clamp(min=0).sqrt())


def _unfolded(kernel: Tensor) -> float:
    taps = prod(kernel.shape[3:])
    flat = kernel.flatten(3)
    wide, tall = flat.flatten(2), flat.movedim(3, 1).flatten(1, 2)
    both = [torch.linalg.matrix_norm(matrix, ord=2).amax() for matrix in (wide, tall)]
    each = torch.linalg.matrix_norm(flat.movedim(3, 1), ord=2).sum(dim=1).amax()
    return float(torch.minimum(torch.minimum(*both) * taps**0.5, each))


def stamp(weight: Tensor) -> tuple[object, ...]:
    """Return what tells a weight from what it was: versions see neither what is written through `.data` nor the steps
    of fused optimisers.
    """
    held = weight.detach()
    sums = (float(held.sum(dtype=torch.float64)), float(held.abs().sum(dtype=torch.float64)))
    return weight._version, weight.data_ptr(), weight.dtype, *sums


def _remembered(weight: Tensor, key: tuple[int, ...], compute: Callable[[], float]) -> float:
    known: dict[tuple[int, ...], tuple[object, float]] = _known.setdefault(weight, {})  # type: ignore[no-untyped-call]
    now = stamp(weight)
    if key not in known or known[key][0] != now:
        known[key] = now, compute()
    return known[key][1]


def _check_finite(weight: Tensor) -> None:
    if not bool(weight.detach().isfinite().all()):
        raise NoBoundError("a weight is not finite")
