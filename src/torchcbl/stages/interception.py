"""Handing a backbone's calls to the run of the thread they are made in.

Torch functions come through a mode, which torch keeps per thread. Modules carry an interceptor in place of `forward`,
but only while some thread is inside a replayed call, and it passes the calls of all other threads through.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from torchcbl.stages.replay import Run

Function = Callable[..., object]


class FunctionMode(TorchFunctionMode):
    """Hand every torch function of this thread to the run."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return self.run.call_function(func, args, dict(kwargs or {}))


_thread = threading.local()
_lock = threading.Lock()
_users: dict[nn.Module, int] = {}


@contextmanager
def activated(run: Run) -> Iterator[None]:
    """Make this the run of the current thread."""
    outer = getattr(_thread, "run", None)
    _thread.run = run
    try:
        yield
    finally:
        _thread.run = outer


@contextmanager
def intercepting(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Give modules an interceptor for as long as some thread needs it; calls of other threads pass through."""
    with _lock:
        for module in modules:
            if _users.setdefault(module, 0) == 0:
                module.__dict__["forward"] = _Interceptor(module, module.__dict__.get("forward"))
            _users[module] += 1
    try:
        yield
    finally:
        with _lock:
            for module in modules:
                _users[module] -= 1
                if _users[module] == 0:
                    del _users[module]
                    module.__dict__["forward"].restore()


class _Interceptor:
    """Stands in for a module's `forward` and asks the thread's run, if there is one that knows the module."""

    def __init__(self, module: nn.Module, replaced: object) -> None:
        self.module = module
        self.replaced = replaced
        self.forward: Function = module.forward

    def __call__(self, *args: object, **kwargs: object) -> object:
        run: Run | None = getattr(_thread, "run", None)
        if run is None or self.module not in run.cut.intercepted:
            return self.forward(*args, **kwargs)
        return run.call_module(self.module, self.forward, args, kwargs)

    def restore(self) -> None:
        """Give the module back the forward it had."""
        if self.replaced is None:
            del self.module.__dict__["forward"]
        else:
            self.module.__dict__["forward"] = self.replaced
