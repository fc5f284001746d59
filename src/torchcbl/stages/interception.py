"""Handing a backbone's calls to the run of the thread they are made in.

Torch functions come through a mode, which torch keeps per thread. Modules carry an interceptor in place of `forward`,
and of the whole call where they have hooks, but only while some thread is inside a replayed call, and it passes the
calls of all other threads through. Copies and pickles that another thread makes meanwhile are free of it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from torchcbl.stages.base import has_hooks

if TYPE_CHECKING:
    from torchcbl.stages.replay import Run

Function = Callable[..., object]


class FunctionMode(TorchFunctionMode):
    """Hand every torch function of this thread to the run."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run
        self.inside = False

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Enter the mode; it may be left before the end."""
        self.__enter__()  # type: ignore[no-untyped-call]
        self.inside = True
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Leave the mode, unless another has been entered since, which then leaves first."""
        if self.inside and _get_current_function_mode() is self:  # type: ignore[no-untyped-call]
            self.inside = False
            self.__exit__(None, None, None)

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        return self.run.call_function(func, args, kwargs or _NOTHING)


_NOTHING: dict[str, object] = {}
_thread = threading.local()
_lock = threading.Lock()
_users: dict[nn.Module, int] = {}
_interceptors: dict[nn.Module, _Interceptor] = {}


@contextmanager
def activated(run: Run) -> Iterator[None]:
    """Make this the run of the current thread."""
    outer = getattr(_thread, "run", None)
    _thread.run = run
    try:
        yield
    finally:
        _thread.run = outer


_groups: dict[int, int] = {}


@contextmanager
def intercepting(modules: frozenset[nn.Module]) -> Iterator[None]:
    """Give modules an interceptor for as long as some thread needs it; calls of other threads pass through.

    Entering it again for the same set, as each step of a call does, costs next to nothing.
    """
    with _lock:
        _groups[id(modules)] = _groups.get(id(modules), 0) + 1
        if _groups[id(modules)] == 1:
            _install(modules)
    try:
        yield
    finally:
        with _lock:
            _groups[id(modules)] -= 1
            if _groups[id(modules)] == 0:
                del _groups[id(modules)]
                _remove(modules)


def _install(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        if _users.setdefault(module, 0) == 0:
            _interceptors[module] = _Interceptor(module)
        _users[module] += 1


def _remove(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        _users[module] -= 1
        if _users[module] == 0:
            del _users[module]
            _interceptors.pop(module).restore()


class _StandIn:
    """Answers in the place of a method. A copy that takes it along, made just as it came, has that method instead."""

    def __init__(self, answer: Function, method: Function, before: object) -> None:
        self.answer = answer
        self.__wrapped__ = method  # whose signature is asked for
        self.stands_for = before

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.answer(*args, **kwargs)

    def __reduce__(self) -> tuple[Function, tuple[Function]]:
        return _unchanged, (self.__wrapped__,)


def _unchanged(method: Function) -> Function:
    return method


class _Interceptor:
    """Stands in for a module's `forward` and asks the thread's run, if there is one that knows the module.

    Where the module has hooks, it also stands in for the call that runs them and, between them, `forward`.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.forward: Function = module.forward
        self.call: Function = module._call_impl
        own_state: Function | None = getattr(module, "__getstate__", None)  # Python 3.10 with an older torch has none
        self.get_state: Function = own_state or functools.partial(vars, module)
        self.hooked = has_hooks(module) or bool(_has_any_global_hook())  # type: ignore[no-untyped-call]
        stood_in: dict[str, tuple[Function, Function]] = {
            "forward": (self.call_forward, self.forward),
            "__getstate__": (self.state, self.get_state),
        }
        if self.hooked:
            stood_in["_call_impl"] = self.call_all, self.call
        self.replaced = {name: module.__dict__.get(name) for name in stood_in}
        for name, (answer, method) in stood_in.items():
            module.__dict__[name] = _StandIn(answer, method, self.replaced[name])

    def call_forward(self, *args: object, **kwargs: object) -> object:
        """Stand in for `forward`."""
        run: Run | None = getattr(_thread, "run", None)
        if run is None or self.module not in run.cut.intercepted:
            return self.forward(*args, **kwargs)
        answer = run.call_between_hooks if self.hooked else run.call_module
        return answer(self.module, self.forward, args, kwargs)

    def call_all(self, *args: object, **kwargs: object) -> object:
        """Stand in for the hooks and `forward`."""
        run: Run | None = getattr(_thread, "run", None)
        if run is None or self.module not in run.cut.intercepted:
            return self.call(*args, **kwargs)
        return run.call_with_hooks(self.module, self.call, args, kwargs)

    def state(self) -> object:
        """Stand in for `__getstate__`: what a copy or a pickle of the module is made from, without what stands in."""
        state = self.get_state()
        if not isinstance(state, dict):
            return state
        own = {name: value for name, value in self.replaced.items() if value is not None}
        return {name: value for name, value in state.items() if name not in self.replaced} | own

    def restore(self) -> None:
        """Give the module back what it had."""
        for name, before in self.replaced.items():
            if before is None:
                del self.module.__dict__[name]
            else:
                self.module.__dict__[name] = before
