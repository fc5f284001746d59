"""Holding noise over the steps of a call: dropout, stochastic depth, dropped layers, whatever draws random numbers.

At step 0 the state of the random generators (torch's, Python's, numpy's) is noted as the start site finishes; each
rerun begins there again, so that the same code draws the same numbers, also where torch fuses them into attention or an
LSTM. Adapters and the context draw from a stream of their own, which goes on from step to step.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import pickle
import random
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class States:
    """States of random generators.

    Args:
        by_device: Those of torch's.
        python: That of `random`; None where it does not count.
        numpy: That of `numpy.random`; None where it does not count, or nobody has imported it.
    """

    by_device: dict[torch.device, Tensor]
    python: tuple[object, ...] | None
    numpy: Mapping[str, object] | None

    def now(self) -> States:
        """Note the states that the same generators have now."""
        return States(
            {device: _get(device) for device in self.by_device},
            None if self.python is None else random.getstate(),
            None if self.numpy is None else _numpy_state(),
        )

    def restore(self) -> None:
        """Give the generators these states again."""
        for device, state in self.by_device.items():
            _set(device, state)
        if self.python is not None:
            random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy.random"].set_state(self.numpy)

    def moved(self) -> bool:
        """Say whether anything has been drawn since."""
        now = self.now()
        torch_s = any(not torch.equal(state, now.by_device[device]) for device, state in self.by_device.items())
        return torch_s or now.python != self.python or not _same(now.numpy, self.numpy)

    def narrowed(self) -> States:
        """Leave out Python's and numpy's where nothing has been drawn from them since: they take long to set."""
        now = self.now()
        python = None if now.python == self.python else self.python
        return replace(self, python=python, numpy=None if _same(now.numpy, self.numpy) else self.numpy)


_NOTING = threading.Lock()
"""Held while the collector is off, so that one thread does not switch it on for another."""


@dataclass
class HeldNoise:
    """The generators during one rerun.

    Args:
        at_start: Their states when the start site finished at step 0.
        outside: Their states for what is none of the backbone.
    """

    at_start: States
    outside: States

    def rewind(self) -> None:
        """Begin where step 0 left the start site."""
        self.at_start.restore()

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Let an adapter draw from its own stream."""
        inside = self.outside.now()
        self.outside.restore()
        try:
            yield
        finally:
            self.outside = self.outside.now()
            inside.restore()

    def end(self) -> None:
        """Go on with the stream of what is none of the backbone."""
        self.outside.restore()


def generator_states(module: nn.Module) -> States:
    """Note the states of all generators that a module may draw from: the CPU's, its devices', Python's and numpy's."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    devices = {torch.device("cpu"), *(tensor.device for tensor in tensors)}
    by_device = {device: _get(device) for device in devices if device.type in ("cpu", "cuda", "mps")}
    return States(by_device, random.getstate(), _numpy_state())


@contextlib.contextmanager
def generators_kept(module: nn.Module) -> Iterator[States]:
    """Undo what is drawn meanwhile from the generators that a module may draw from; gives their states.

    As torch.random.fork_rng does, but with states noted as below.
    """
    states = generator_states(module)
    try:
        yield states
    finally:
        states.restore()


def _numpy_state() -> Mapping[str, object] | None:
    numpy = sys.modules.get("numpy.random")
    state: Mapping[str, object] | None = None if numpy is None else numpy.get_state(legacy=False)
    return state


def _same(some: Mapping[str, object] | None, others: Mapping[str, object] | None) -> bool:
    return pickle.dumps(some) == pickle.dumps(others)  # there is an array in a state


def _get(device: torch.device) -> Tensor:
    """Note a generator's state, without Python's collector.

    torch makes the tensor while it holds the generator's lock. A collection there that frees tensors lets other threads
    run, and one that asks for a state then waits for that lock without letting any run: no thread goes on.
    """
    with _NOTING:
        enabled = gc.isenabled()
        gc.disable()
        try:
            return _state(device)
        finally:
            if enabled:
                gc.enable()


def _state(device: torch.device) -> Tensor:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else torch.get_rng_state()


def _set(device: torch.device, state: Tensor) -> None:
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    elif device.type == "mps":
        torch.mps.set_rng_state(state)
    else:
        torch.set_rng_state(state)
