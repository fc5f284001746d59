"""Holding noise over the steps of a call: dropout, stochastic depth, dropped layers, whatever draws random numbers.

At step 0 the state of the random generators is noted as the start site finishes; each rerun begins there again, so that
the same code draws the same numbers, also where torch fuses them into attention or an LSTM. Adapters and the context
draw from a stream of their own, which goes on from step to step.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

States = dict[torch.device, Tensor]
"""States of the generators by device."""

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
        _set(self.at_start)

    @contextlib.contextmanager
    def left(self) -> Iterator[None]:
        """Let an adapter draw from its own stream."""
        inside = {device: _get(device) for device in self.at_start}
        _set(self.outside)
        try:
            yield
        finally:
            self.outside = {device: _get(device) for device in self.at_start}
            _set(inside)

    def end(self) -> None:
        """Go on with the stream of what is none of the backbone."""
        _set(self.outside)


def generator_states(module: nn.Module) -> States:
    """Note the states of all generators that a module may draw from: the CPU's and those of its devices."""
    tensors = itertools.chain(module.parameters(), module.buffers())
    devices = {torch.device("cpu"), *(tensor.device for tensor in tensors)}
    return {device: _get(device) for device in devices if device.type in ("cpu", "cuda", "mps")}


@contextlib.contextmanager
def generators_kept(module: nn.Module) -> Iterator[None]:
    """Undo what is drawn meanwhile from the generators that a module may draw from.

    As torch.random.fork_rng does, but with states noted as below.
    """
    states = generator_states(module)
    try:
        yield
    finally:
        _set(states)


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


def _set(states: States) -> None:
    for device, state in states.items():
        if device.type == "cuda":
            torch.cuda.set_rng_state(state, device)
        elif device.type == "mps":
            torch.mps.set_rng_state(state)
        else:
            torch.set_rng_state(state)
