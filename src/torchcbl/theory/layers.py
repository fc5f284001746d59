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
    nn.Hardsigmoid: "hardsigmoid",
    nn.Hardswish: "hardswish",
    nn.Softsign: "softsign",
}


def pointwise(name: str, reach: Reach) -> Reach:
    """Bound an elementwise function by name."""
    slope, size, shrinks = SLOPES[name]
    return reach.times(slope, size if size is not None else reach.size if shrinks else None)


def leaky(slope: float, reach: Reach) -> Reach:
    """Bound max(x, 0) + slope min(x, 0), and what lies between it and the identity."""
    largest = max(1.0, abs(slope))
    return reach.times(largest, None if reach.size is None else reach.size * largest)


def softplus(threshold: float, reach: Reach) -> Reach:
    """Bound log(1 + exp(beta x)) / beta, which torch replaces by x, with a jump, where beta x is above a threshold.

    Raises:
        NoBoundError: The jump is more than rounding.
    """
    if threshold < 20.0:
        raise NoBoundError(f"softplus jumps at its threshold of {threshold:g}")
    return pointwise("softplus", reach)


def _softplus(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, nn.Softplus)
    return softplus(float(module.threshold), reach)


def _linear(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, nn.Linear)
    return reach.times(lambda: linear_norm(module), _affine_size(module.weight, module.bias, reach))


def _affine_size(weight: Tensor, bias: Tensor | None, reach: Reach) -> Tensor | None:
    if reach.size is None or not reach.moves:
        return None
    rows = weight.detach().double().abs().sum(dim=1).cpu()
    shift = 0.0 if bias is None else bias.detach().double().abs().cpu()
    return (reach.size[:, None] * rows + shift).amax(dim=1)


def _conv(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, _ConvNd)
    _check_batched(module, before, len(module.kernel_size))
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
    if module.eps <= 0.0:
        raise NoBoundError(f"{type(module).__name__} with eps = {module.eps:g} divides by a deviation that may be zero")
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
    return leaky(float(getattr(module, "negative_slope", getattr(module, "alpha", 1.0))), reach)


def _hardtanh(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    assert isinstance(module, nn.Hardtanh)
    return reach.times(1.0, float(max(abs(module.min_val), abs(module.max_val))))


def _max_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    dims = _check_batched(module, before)
    return reach.kept(sqrt(_overlap(module, dims)))


def _avg_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    dims = _check_batched(module, before)
    kernel, divisor = prod(_each(module.kernel_size, dims)), getattr(module, "divisor_override", None)
    overlap = _overlap(module, dims)
    if divisor is not None:
        size = None if reach.size is None else reach.size * (kernel / abs(divisor))
        return reach.times(sqrt(overlap * kernel) / abs(divisor), size)
    padded = any(_each(module.padding, dims)) and not module.count_include_pad
    return reach.kept(sqrt(overlap / (1 if padded or module.ceil_mode else kernel)))


def _adaptive_avg_pool(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    _check_batched(module, before)
    pairs = list(zip(before[2:], after[2:], strict=True))
    if all(n % m == 0 for n, m in pairs):
        return reach.kept(1.0 / sqrt(prod(n // m for n, m in pairs)))
    return reach.kept(sqrt(prod((ceil(m / n) + 1) / max(1, n // m) for n, m in pairs)))


def _check_batched(module: nn.Module, before: Shape, dims: int | None = None) -> int:
    """Return over how many axes a layer like Conv2d works; without a batch axis it would take samples for channels."""
    if dims is None:
        dims = int(type(module).__name__[-2])
    if len(before) != dims + 2:
        raise NoBoundError(f"{type(module).__name__} is given {len(before)} axes and takes its samples for channels")
    return dims


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
    ((nn.Softplus,), _softplus),
    ((nn.Hardtanh,), _hardtanh),
    ((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max_pool),
    ((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _avg_pool),
    ((nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d), _adaptive_avg_pool),
)
_ALONG_FEATURES = (nn.Linear, nn.LayerNorm, nn.Dropout, nn.Identity, nn.LeakyReLU, nn.ELU, nn.Softplus, nn.Hardtanh)


def through(module: nn.Module, reach: Reach, before: Shape, after: Shape) -> Reach:
    """Bound what a module makes of a value.

    Raises:
        NoBoundError: There is no rule for it, or it has no Lipschitz constant.
    """
    if type(module) in _NAMES and _is_own(module):
        return pointwise(_NAMES[type(module)], reach)
    for kinds, rule in _RULES:
        if isinstance(module, kinds) and _is_own(module):
            return rule(module, reach, before, after)
    name = type(module).__name__
    if "Attention" in name or "Transformer" in name:
        raise NoBoundError(f"{name} has no Lipschitz constant: dot-product attention grows without bound")
    raise NoBoundError(f"no bound is known for {name}")


def _is_own(module: nn.Module) -> bool:
    """Say whether a module computes what its class of torch's does, and not something of its own or a subclass's."""
    return type(module).__module__.startswith(("torch.nn.", "torchcbl.")) and "forward" not in vars(module)


def along_features(module: nn.Module, reach: Reach) -> Reach:
    """Bound what a layer makes of the last axis of a value, position by position.

    Raises:
        NoBoundError: It is none that works on that axis alone.
    """
    if type(module) not in _NAMES and not isinstance(module, _ALONG_FEATURES):
        raise NoBoundError(f"no bound is known for {type(module).__name__} in the map of a context")
    return through(module, reach, (), ())
