"""What each function of a traced network does to a bound: one rule per name, with the arguments of torch's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt

import torch

from torchcbl.theory.layers import SLOPES, Shape, leaky, pointwise, softplus
from torchcbl.theory.reach import NoBoundError, Reach, known


@dataclass(frozen=True)
class Operand:
    """A tensor among a function's arguments.

    Args:
        reach: What is known of it.
        shape: Its shape; None for a tuple of tensors, whose reach is that of all of them together.
    """

    reach: Reach
    shape: Shape | None


Rule = Callable[..., Reach]
"""rule(shape of the result, *args, **kwargs) -> reach of the result; tensors among the arguments are operands."""


def through_function(name: str, after: Shape, args: Sequence[object], kwargs: Mapping[str, object]) -> Reach:
    """Bound what a function of torch's, or a method of a tensor, returns.

    Raises:
        NoBoundError: There is no rule for it, or none for these arguments.
    """
    rule = _RULES.get(name.removesuffix("_"))
    if rule is None:
        raise NoBoundError(f"no bound is known for {name}()")
    try:
        return rule(after, *args, **kwargs)
    except (TypeError, AttributeError) as error:
        raise NoBoundError(f"no bound is known for {name}() with the arguments it is given") from error


def _moved(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    """The same entries in another order or form, or some of them, or the largest of some of them."""
    _check_plain(*args, *kwargs.values())
    if _repeats(input, after) > 1.0:
        raise NoBoundError("the network repeats entries")
    return input.reach.kept()


def _parted(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    return input.reach.kept()


def _repeated(after: Shape, input: Operand, *args: object) -> Reach:
    return input.reach.kept(sqrt(_repeats(input, after)))


def _mean(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    _check_plain(*args, *kwargs.values())
    return input.reach.kept(1.0 / sqrt(_folds(input, after)))


def _total(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    _check_plain(*args, *kwargs.values())
    return input.reach.times(sqrt(_folds(input, after)))


def _sum(after: Shape, input: Operand | float, other: Operand | float) -> Reach:
    total, added = _broadcast(input, after), _broadcast(other, after)
    return total.plus(added)


def _product(after: Shape, input: Operand | float, other: Operand | float) -> Reach:
    return _broadcast(input, after).product(_broadcast(other, after), "the network")


def _quotient(after: Shape, input: Operand, other: Operand | float) -> Reach:
    if isinstance(other, Operand) or not other:
        raise NoBoundError("the network divides by a value that may be zero")
    return _product(after, input, 1.0 / float(other))


def _broadcast(value: Operand | float, after: Shape) -> Reach:
    """What is written several times counts as often."""
    if isinstance(value, Operand):
        return value.reach.kept(sqrt(_repeats(value, after)))
    return Reach(known(0.0), known(abs(float(value))))


def _joined(after: Shape, tensors: Operand | Sequence[Operand], dim: int = 0) -> Reach:
    if isinstance(tensors, Operand):  # the parts of one tensor
        return tensors.reach.kept()
    total = tensors[0].reach
    for one in tensors[1:]:
        total = total.beside(one.reach)
    return total


def _taken(after: Shape, input: Operand, index: object) -> Reach:
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is ... or isinstance(part, (int, slice)) for part in parts):
        raise NoBoundError("the network picks entries by an index that may repeat them")
    return input.reach.kept()


def _viewed(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    if any(isinstance(value, torch.dtype) for value in (*args, *kwargs.values())):
        raise NoBoundError("the network reads numbers as those of another type")
    return _moved(after, input, *args, **kwargs)


def _elu(after: Shape, input: Operand, alpha: float = 1.0, inplace: bool = False) -> Reach:
    return leaky(float(alpha), input.reach)


def _leaky_relu(after: Shape, input: Operand, negative_slope: float = 0.01, inplace: bool = False) -> Reach:
    return leaky(float(negative_slope), input.reach)


def _hardtanh(
    after: Shape, input: Operand, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Reach:
    return input.reach.times(1.0, max(abs(float(min_val)), abs(float(max_val))))


def _softplus(after: Shape, input: Operand, beta: float = 1.0, threshold: float = 20.0) -> Reach:
    return softplus(float(threshold), input.reach)


def _pointwise(name: str) -> Rule:
    def rule(after: Shape, input: Operand, inplace: bool = False) -> Reach:
        return pointwise(name, input.reach)

    return rule


def _gelu(after: Shape, input: Operand, approximate: str = "none") -> Reach:
    return pointwise("gelu", input.reach)


def _softmax(after: Shape, input: Operand, *args: object, **kwargs: object) -> Reach:
    _check_plain(*args, *kwargs.values())
    return pointwise("softmax", input.reach)


def _repeats(value: Operand, after: Shape) -> float:
    """How often the entries of a value stand in a result that holds them all, at least 1."""
    return max(1.0, prod(after) / max(1, prod(_shape(value))))


def _folds(value: Operand, after: Shape) -> float:
    """How many entries of a value one of the result is made from, at least 1."""
    return max(1.0, prod(_shape(value)) / max(1, prod(after)))


def _shape(value: Operand) -> Shape:
    if value.shape is None:
        raise TypeError("several tensors in the place of one")
    return value.shape


def _check_plain(*arguments: object) -> None:
    if any(isinstance(argument, Operand) for argument in arguments):
        raise TypeError("a tensor in the place of a number")


_RULES: Mapping[str, Rule] = {
    **{name: _pointwise(name) for name in SLOPES},
    **dict.fromkeys(("flatten", "reshape", "permute", "transpose", "movedim", "contiguous", "squeeze"), _moved),
    **dict.fromkeys(("unsqueeze", "clone", "float", "double", "to", "narrow", "select", "neg", "amax", "amin"), _moved),
    **dict.fromkeys(("chunk", "split", "unbind"), _parted),
    **dict.fromkeys(("add", "iadd", "sub", "isub"), _sum),
    **dict.fromkeys(("mul", "imul"), _product),
    **dict.fromkeys(("truediv", "itruediv", "div"), _quotient),
    **dict.fromkeys(("cat", "concat", "stack"), _joined),
    **dict.fromkeys(("expand", "repeat", "expand_as"), _repeated),
    "view": _viewed,
    "mean": _mean,
    "sum": _total,
    "getitem": _taken,
    "softmax": _softmax,
    "elu": _elu,
    "leaky_relu": _leaky_relu,
    "hardtanh": _hardtanh,
    "softplus": _softplus,
    "gelu": _gelu,
}
