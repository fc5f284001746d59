"""How far a value can move when the state of the loop moves: what a certificate is put together from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Factor = float | Tensor | Callable[[], float | Tensor]


class NoBoundError(Exception):
    """The architecture allows no bound; the message says what stands in the way."""


def known(value: Tensor | float) -> Tensor:
    """Return a factor or a size as (B,) or (1,) float64 on the CPU, where certificates are put together."""
    return torch.as_tensor(value, dtype=torch.float64, device="cpu").reshape(-1)


@dataclass(frozen=True)
class Reach:
    """A value v of the network as a function of the loop's state s, sample by sample.

        ||v(s) - v(s')|| <= factor ||s - s'||,    |v_i(s)| <= size

    Args:
        factor: Its Lipschitz constant in the 2-norm of a flattened sample, (B,) or (1,) float64; 0 for what does not
            depend on the state.
        size: Bound of all its entries, (B,) or (1,); None where none is known.
        value: The value itself, where it is known and does not depend on the state.
    """

    factor: Tensor
    size: Tensor | None = None
    value: Tensor | None = None

    @classmethod
    def constant(cls, value: Tensor, per_sample: bool) -> Reach:
        """What is known of a value that does not depend on the state, and has the batch first or no batch at all."""
        held, entries = value.detach(), value.detach().abs().double()
        size = (
            None if not value.numel() else entries.flatten(1).amax(dim=1) if per_sample else entries.amax().reshape(1)
        )
        return cls(known(0.0), None if size is None else size.cpu(), held)

    @classmethod
    def unknown(cls) -> Reach:
        """A value that does not depend on the state, and of which nothing else is known."""
        return cls(known(0.0))

    @property
    def moves(self) -> bool:
        """Whether it depends on the state."""
        return bool((self.factor != 0).any())

    def times(self, factor: Factor, size: Tensor | float | None = None) -> Reach:
        """What a map with that Lipschitz constant makes of it; the constant is computed only where it matters."""
        bound = known(size) if size is not None else None
        if not self.moves:
            return Reach(self.factor, bound)
        value = factor() if callable(factor) else factor
        return Reach(self.factor * known(value), bound)

    def kept(self, factor: Factor = 1.0) -> Reach:
        """What a map that enlarges no entry makes of it."""
        return self.times(factor, self.size)

    def plus(self, other: Reach) -> Reach:
        """Bound the sum of two values of one shape."""
        size = None if self.size is None or other.size is None else self.size + other.size
        return Reach(self.factor + other.factor, size)

    def beside(self, other: Reach) -> Reach:
        """Bound two values put side by side."""
        size = None if self.size is None or other.size is None else torch.maximum(self.size, other.size)
        return Reach((self.factor**2 + other.factor**2).sqrt(), size)

    def product(self, other: Reach, name: str) -> Reach:
        """Bound the elementwise product of two values.

        Raises:
            NoBoundError: One depends on the state and the other has no bound.
        """
        factor = known(0.0)
        for moving, held in ((self, other), (other, self)):
            if not moving.moves:
                continue
            if held.size is None:
                raise NoBoundError(
                    f"{name} multiplies two values of which one depends on the state and one is unbounded"
                )
            factor = factor + moving.factor * held.size
        size = None if self.size is None or other.size is None else self.size * other.size
        return Reach(factor, size)
