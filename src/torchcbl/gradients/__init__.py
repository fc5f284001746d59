"""Gradient rules: how the answer of an iteration is differentiated. One interface, `Gradient.run`."""

from __future__ import annotations

from collections.abc import Mapping

from torchcbl.gradients.base import Gradient, Problem
from torchcbl.gradients.implicit import Implicit
from torchcbl.gradients.phantom import Phantom
from torchcbl.gradients.unrolled import Bptt, Checkpointed, Truncated

GRADIENTS: Mapping[str, type[Gradient]] = {
    rule.name: rule for rule in (Bptt, Truncated, Checkpointed, Phantom, Implicit)
}

__all__ = [
    "GRADIENTS",
    "Bptt",
    "Checkpointed",
    "Gradient",
    "Implicit",
    "Phantom",
    "Problem",
    "Truncated",
    "find_gradient",
]


def find_gradient(rule: object) -> Gradient:
    """Return a gradient rule by its name, itself where it is one, and `Bptt()` for None.

    Raises:
        ValueError: There is none of that name.
        TypeError: It is neither.
    """
    if rule is None:
        return Bptt()
    if isinstance(rule, Gradient):
        return rule
    if isinstance(rule, str):
        if rule not in GRADIENTS:
            raise ValueError(f"gradient must be one of {', '.join(map(repr, GRADIENTS))} or a Gradient, got {rule!r}.")
        return GRADIENTS[rule]()
    given = f"the class {rule.__name__}: pass an object, {rule.__name__}()" if isinstance(rule, type) else rule
    raise TypeError(f"gradient must be a name or a torchcbl.gradients.Gradient, got {given}.")
