"""What each kind of layer does to a bound: one rule per module class and per function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, prod, sqrt

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from torchcbl.theory.norms import conv_norm, linear_norm
from torchcbl.theory.reach import NoBoundError, Reach

Shape = Sequence[int]
Rule = Callable[[nn.Module, Reach, Shape, Shape], Reach]
"""rule(module, reach of its input, shape of its input, shape of its output) -> reach of its output."""

SLOPES: Mapping[str, tuple[float, float | None, bool]] = {
    # largest slope, bound of the result where there is one, whether |f(x)| <= |x|
    "relu": (1.0, None, True),
    "relu6": (1.0, 6.0, True),
    "tanh": (1.0, 1.0, True),
    "sigmoid": (0.25, 1.0, False),
    "softmax": (0.5, 1.0, False),
    "gelu": (1.13, None, True),
    "silu": (1.1, None, True),
    "softplus": (1.0, None, False),
    "hardtanh": (1.0, 1.0, True),
    "hardsigmoid": (0.16667, 1.0, False),
    "hardswish": (1.5, None, True),
    "softsign": (1.0, 1.0, True),
    "abs": (1.0, None, True),
    "sin": (1.0, 1.0, True),
    "cos": (1.0, 1.0, False),
    "elu": (1.0, None, True),
}
"""Lipschitz constants of elementwise functions (of softmax over its axis: diag(p) - p p^T has eigenvalues of at most
1/2)."""

_NAMES: Mapping[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Softplus: "softplus",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Softsign: "softsign",
}


def pointwise(name: str, reach: Reach) -> Reach:
    """Bound an elementwise function by name."""
    slope, size, shrinks = SLOPES[name]
    return reach.times(slope, size if size is not None else reach.size if shrinks else None)


def _linear(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, nn.Linear)
    return reach.times(lambda: linear_norm(module), _affine_size(module.weight, module.bias, reach))


def _affine_size(weight: Tensor, bias: Tensor | None, reach: Reach) -> Tensor | None:
    if reach.size is None or not reach.moves:
        return None
    rows = weight.detach().double().abs().sum(dim=1)
    shift = 0.0 if bias is None else bias.detach().double().abs()
    return (reach.size[:, None] * rows + shift).amax(dim=1)


def _conv(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, _ConvNd)
    sizes = after if isinstance(module, _ConvTransposeNd) else before
    return reach.times(lambda: conv_norm(module, sizes[2:]))


def through_batch_norm(norm: _BatchNorm, reach: Reach, variance: Tensor | None) -> Reach:
    """Bound what a batch norm that divides by a given variance makes of a value.

    Raises:
        NoBoundError: There is none: it takes that of its batch.
    """
    if variance is None or not _is_own(norm):
        raise NoBoundError(f"{type(norm).__name__} mixes the samples of a batch, or does more than normalise")
    scale = (variance.detach().double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double().abs()
    return reach.times(float(scale.max()))


def _standardise(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    """(x - mean) / sqrt(var + eps): its Jacobian is a projection over the deviation, which eps alone bounds."""
    assert isinstance(module, (nn.LayerNorm, nn.GroupNorm))
    weight = module.weight
    largest = 1.0 if weight is None else float(weight.detach().double().abs().max())
    return reach.times(largest / sqrt(module.eps))


def _dropout(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    p = float(getattr(module, "p", 0.0)) if module.training else 0.0
    factor = 1.0 / (1.0 - p) if p < 1.0 else 0.0
    return reach.times(factor, None if reach.size is None else reach.size * factor)


def _same(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    return reach.kept()


def _leaky(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    slope = max(1.0, abs(float(getattr(module, "negative_slope", getattr(module, "alpha", 1.0)))))
    return reach.times(slope, None if reach.size is None else reach.size * slope)


def _hardtanh(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, nn.Hardtanh)
    return reach.times(1.0, float(max(abs(module.min_val), abs(module.max_val))))


def _max_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    return reach.kept(sqrt(_overlap(module, len(before) - 2)))


def _avg_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    dims = len(before) - 2
    kernel = prod(_each(module.kernel_size, dims))
    padded = any(_each(module.padding, dims)) and not module.count_include_pad
    plain = not padded and not module.ceil_mode and getattr(module, "divisor_override", None) is None
    return reach.kept(sqrt(_overlap(module, dims) / (kernel if plain else 1)))


def _adaptive_avg_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    pairs = list(zip(before[2:], after[2:], strict=True))
    if all(n % m == 0 for n, m in pairs):
        return reach.kept(1.0 / sqrt(prod(n // m for n, m in pairs)))
    return reach.kept(sqrt(prod((ceil(m / n) + 1) / max(1, n // m) for n, m in pairs)))


def _overlap(module: nn.Module, dims: int) -> int:
    """How many windows of a pooling an entry can be in."""
    kernel, dilation = _each(module.kernel_size, dims), _each(getattr(module, "dilation", 1), dims)
    stride = _each(module.stride if module.stride is not None else module.kernel_size, dims)
    return prod(min(k, ceil(((k - 1) * d + 1) / s)) for k, s, d in zip(kernel, stride, dilation, strict=True))


def _each(value: object, dims: int) -> tuple[int, ...]:
    if isinstance(value, (tuple, list)):
        return tuple(int(one) for one in value) * (dims if len(value) == 1 else 1)
    return (int(value),) * dims  # type: ignore[call-overload]


_RULES: Sequence[tuple[tuple[type[nn.Module], ...], Rule]] = (
    ((nn.Linear,), _linear),
    ((_ConvNd,), _conv),
    ((nn.LayerNorm, nn.GroupNorm), _standardise),
    ((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d), _dropout),
    ((nn.Identity, nn.Flatten, nn.Unflatten), _same),
    ((nn.LeakyReLU, nn.ELU), _leaky),
    ((nn.Hardtanh,), _hardtanh),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _avg_pool),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_avg_pool),
)


def through(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    """Bound what a module makes of a value.

    Raises:
        NoBoundError: There is no rule for it, or it has no Lipschitz constant.
    """
    if type(module) in _NAMES:
        return pointwise(_NAMES[type(module)], reach)
    for kinds, rule in _RULES:
        if isinstance(module, kinds) and _is_own(module):
            return rule(module, reach, before, after)
    name = type(module).__name__
    if "Attention" in name or "Transformer" in name:
        raise NoBoundError(f"{name} has no Lipschitz constant: dot-product attention grows without bound")
    raise NoBoundError(f"no bound is known for {name}")


def _is_own(module: nn.Module) -> bool:
    """Say whether a module computes what its class of torch's does, and not something of a subclass's own."""
    return type(module).__module__.startswith(("torch.nn.", "torchcbl."))


def ratio(before: Shape, after: Shape) -> float:
    """How many entries of the smaller shape there are to one of the larger, at least 1."""
    a, b = prod(before), prod(after)
    return max(a, b) / max(1, min(a, b))
