"""What a fixed-point problem and a solver are: G over a batch, and how the next iterate is chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

if TYPE_CHECKING:
    from torchcbl.solvers.iteration import Trace

Memory = object
"""What a solver or a stopping rule remembers of each sample: tensors with the batch first, in tuples."""


class Evaluation(NamedTuple):
    """One evaluation of G.

    Args:
        value: G(s), (B, N).
        output: The y that belongs to it, (B, ...).
        returned: What else came with it, as the backbone's own output.
    """

    value: Tensor
    output: Tensor
    returned: object = None


class Map(ABC):
    """G: a map of each sample's state s to the next, over a batch; a fixed point is an s* = G(s*)."""

    @abstractmethod
    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        """Evaluate G at s (B, N), at step tau >= 1."""

    @abstractmethod
    def select(self, index: Tensor) -> Map:
        """Return G for some samples of the batch, given their indices (b,).

        Raises:
            NotSelectableError: The samples cannot be taken apart; they stay together then.
        """

    def advance(self, solver: Solver, memory: Memory, s: Tensor, value: Tensor, step: int) -> tuple[Tensor, Memory]:
        """Return a solver's next iterate and what it remembers; its own arithmetic stays in the precision of s.

        It sees no padding, which would have a say in what it makes of the rest, and goes on by plain steps.
        """
        inside, outside = _autocast(s.device.type)

        def evaluate(point: Tensor) -> Tensor:
            with inside:
                return self.without_padding(self(self.with_padding(point, s), step).value)

        with outside:
            new, memory = solver.step(memory, self.without_padding(s), self.without_padding(value), evaluate)
            return self.with_padding(new, value), memory

    finish_evaluations: int = 1
    """How often `finish` evaluates G."""
    real: Tensor | None = None
    """Which positions of the outputs are no padding, (B, N) of booleans; None where all count."""
    dtypes: tuple[torch.dtype, ...] = ()
    """Which ones G is known to compute in, besides those of the state and the output."""

    def without_padding(self, s: Tensor) -> Tensor:
        """Return a state, or a difference of states, (B, N), with 0 in the place of what is padding."""
        return s

    def with_padding(self, s: Tensor, other: Tensor) -> Tensor:
        """Return a state (B, N) with another's padding in the place of its own."""
        del other
        return s

    def norm(self, s: Tensor) -> Tensor:
        """Return the 2-norm per sample, (B,), of a state or a difference of states, without what is padding."""
        length: Tensor = torch.linalg.vector_norm(self.without_padding(s), dim=1)
        return length

    def finish(self, s: Tensor, step: int) -> Evaluation:
        """Return what belongs to s (B, N) as the answer; its value is s."""
        return self(s, step)._replace(value=s)

    resume_evaluations: int = 0
    """How often `resume` evaluates G."""

    def resume(self, early: Trace) -> Tensor:
        """Return G at the last points of an iteration, (B, N), with gradients in what the next step begins with."""
        return early.value

    def checkpointing(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Return contexts for an evaluation and for its repetition in the backward pass."""
        return nullcontext(), nullcontext()


def _autocast(device: str) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return contexts that put autocast back as it is now, and that switch it off."""
    if not torch.is_autocast_enabled(device):
        return nullcontext(), nullcontext()
    return torch.autocast(device, torch.get_autocast_dtype(device)), torch.autocast(device, enabled=False)


class NotSelectableError(Exception):
    """Samples cannot be taken out of a batch."""


class FunctionMap(Map):
    """G given by a function f(s, *args) of tensors with the batch first.

    Args:
        function: Called with s in its own shape (B, ...) and with `args`; returns that shape.
        shape: The shape of s.
        args: Further arguments; the tensors among them have the batch first.
        dtype: What f is called with and returns; None for that of the vectors.
    """

    def __init__(
        self,
        function: Callable[..., Tensor],
        shape: Sequence[int],
        args: Sequence[object] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        self.function = function
        self.sizes = tuple(shape[1:])
        self.args = tuple(args)
        self.dtype = dtype

    def __call__(self, s: Tensor, step: int = 1) -> Evaluation:
        """Evaluate f."""
        version = None if s.is_inference() else s._version
        new = self.function(self._unpack(s), *self.args)
        if version is not None and s._version != version:
            raise ValueError("the map writes into the state that it is given, which is still needed: clone it first.")
        if not isinstance(new, Tensor) or new.shape != (len(s), *self.sizes):
            got = tuple(new.shape) if isinstance(new, Tensor) else type(new).__name__
            raise ValueError(f"the map returned {got} for a state of shape {(len(s), *self.sizes)}, expected the same.")
        value = new.flatten(1)
        return Evaluation(value if value.dtype == s.dtype else value.to(s.dtype), new, new)

    finish_evaluations = 0

    def finish(self, s: Tensor, step: int) -> Evaluation:
        """Return s itself, in its own shape."""
        del step
        output = self._unpack(s)
        return Evaluation(s, output, output)

    def _unpack(self, s: Tensor) -> Tensor:
        state = s.reshape(len(s), *self.sizes)
        return state if self.dtype is None or self.dtype == s.dtype else state.to(self.dtype)

    def select(self, index: Tensor) -> FunctionMap:
        """Return f with the rows of its arguments."""
        args = [value.index_select(0, index) if isinstance(value, Tensor) else value for value in self.args]
        return FunctionMap(self.function, (len(index), *self.sizes), args, self.dtype)


class Solver(ABC):
    """Choose the next iterate of s = G(s), for each sample by itself.

    A solver is plain data; what it remembers of a run is handed from step to step, so that threads may share one.
    """

    name: str
    diverged_above = 1e6
    """How many times as long as the start and the first step together a step must be for a sample to have diverged."""

    def init(self, s: Tensor) -> Memory:
        """Return what is remembered before the first evaluation, for states s (B, N)."""
        del s
        return ()

    @abstractmethod
    def step(self, memory: Memory, s: Tensor, value: Tensor, g: Callable[[Tensor], Tensor]) -> tuple[Tensor, Memory]:
        """Return the next iterate (B, N) and what is remembered.

        Args:
            memory: What the step before returned.
            s: The present iterate, (B, N).
            value: G(s), (B, N).
            g: G itself, for a solver that needs more than its value.
        """

    def extra_evaluations(self, size: int) -> int:
        """Return how many evaluations of G a step costs beyond the value it is given, for states of N = `size`."""
        del size
        return 0

    def check_size(self, size: int) -> None:
        """Refuse states that are too large for this solver."""
        del size


def select_memory(memory: Memory, index: Tensor) -> Memory:
    """Keep what is remembered of some samples."""
    if isinstance(memory, Tensor):
        return memory.index_select(0, index)
    if type(memory) is tuple:
        return tuple([select_memory(part, index) for part in memory])
    return pytree.tree_map_only(Tensor, lambda leaf: leaf.index_select(0, index), memory)


def keep_finite(new: Tensor, fallback: Tensor) -> Tensor:
    """Replace the samples (B, N) that hold NaN or infinity by those of `fallback`."""
    total = new.detach().sum(dim=1, keepdim=True)  # far cheaper than to look at one by one
    return torch.where(total.abs() < torch.inf, new, fallback)
