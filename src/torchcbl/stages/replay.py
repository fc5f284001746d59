"""One pass through a backbone for the replayed cut: what is taped, what is answered from the tape, what runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils import _pytree as pytree

from torchcbl.adapters.joining import resuming
from torchcbl.backbone.calls import Call
from torchcbl.stages.base import Visit, close, copy_tensors, versions
from torchcbl.stages.checkpointing import (
    called_by_checkpoint,
    check_not_reentrant,
    saved_tensor_hooks,
    wrap_recomputation,
)
from torchcbl.stages.interception import Function, FunctionMode, activated, intercepting
from torchcbl.stages.noise import HeldNoise, States, generator_states, generators_kept
from torchcbl.stages.tracing import buffers_kept
from torchcbl.step_norm import CallStatistics, Step, has_own_forward

if TYPE_CHECKING:
    from torchcbl.stages.replayed import ReplayedCut


@dataclass(frozen=True)
class Carry:
    """What step 0 leaves for the reruns of its call."""

    call: Call
    tape: list[tuple[object, object]]
    start_returned: object
    noise_before: States | None
    noise: States | None
    statistics: CallStatistics
    had_gradients: bool

    def retake(self, cut: ReplayedCut, states: Sequence[Tensor]) -> bool:
        """Take step 0 once more as it was, for its tape alone, and say whether it came to the same states."""
        run = Run(cut)
        with buffers_kept(cut.backbone), generators_kept(cut.backbone), torch.set_grad_enabled(self.had_gradients):
            if self.noise_before is not None:
                self.noise_before.restore()
            run.execute(self.call)
        self.tape[:] = run.tape
        return all(map(close, run.ordered_states(), states))


class PathError(RuntimeError):
    """A rerun took another path than step 0 did."""


@dataclass
class Run:
    """One pass through the backbone: step 0 when `carry` is None, else a rerun."""

    cut: ReplayedCut
    carry: Carry | None = None
    visit: Visit | None = None
    step: Step = 0
    raw: Sequence[Tensor] = ()
    tape: list[tuple[object, object]] = field(default_factory=list)
    states: dict[int, Tensor] = field(default_factory=dict)
    source: Tensor | None = None
    start_returned: object = None  # what the start site's module returned, its hidden state within it
    kept: dict[str, tuple[object, list[int]]] = field(default_factory=dict)
    hooks: tuple[object, ...] = ()  # on saved tensors: as the call began, then of each checkpointed region it is within
    had_gradients: bool = False  # as the call began
    norm: _BatchNorm | None = None  # the batch norm with a forward of its own that is running
    watch: bool = False  # whether this run is to find writes in place
    ran_after: dict[str, nn.Module] = field(default_factory=dict)
    passed: bool = False  # the start site has finished
    inside: int = 0  # depth of modules whose inner calls are not taped one by one
    hooking: bool = False  # a module's hooks are running, whose calls are none of the backbone's
    position: int = 0  # in the tape, of a rerun
    noise: HeldNoise | None = None
    noise_before: States | None = None  # of step 0, if anything is in train mode
    noise_at_start: States | None = None  # likewise, when the start site had finished
    mode: FunctionMode = field(init=False, repr=False)

    def execute(self, call: Call) -> object:
        """Call the backbone with interceptors in place."""
        self.hooks, self.had_gradients = (saved_tensor_hooks(),), torch.is_grad_enabled()
        if self.carry is not None and self.carry.noise is not None:
            self.noise = HeldNoise(self.carry.noise, self.carry.noise.now())
        elif self.carry is None and any(module.training for module in self.cut.names):
            self.noise_before = generator_states(self.cut.backbone)
        try:
            with self._in_place():
                output = call.run(self.cut.backbone)
        finally:
            if self.noise is not None:
                self.noise.end()
        if not self.passed:
            raise PathError(self._lost("finished without running its lowest site"))
        if self.noise_at_start is not None:
            self.noise_at_start = self.noise_at_start.narrowed()
        if not self.watch:
            self._check_writes()
        return output

    @contextlib.contextmanager
    def _in_place(self) -> Iterator[None]:
        self.mode = FunctionMode(self)
        try:
            with intercepting(self.cut.intercepted), activated(self), self.mode.entered():
                yield
        finally:
            del self.mode  # each of the two holds the other, and with it the tensors of the call

    def _pass_start(self) -> None:
        """Note that the start site has finished; from here on functions need not be seen if nothing depends on it."""
        self.passed = True
        if self.noise is not None:
            self.noise.rewind()
        elif self.noise_before is not None:
            self.noise_at_start = self.noise_before.now()
        if not self.cut.sees_functions and not self.watch:
            self.mode.leave()

    def _look_for_checkpointing(self, name: str) -> None:
        """See to it that a checkpointed region is computed again as it is now: by this step, noise and statistics."""
        if self.carry is None or not self.had_gradients:
            return
        if not torch.is_grad_enabled():
            check_not_reentrant(name)
        hooks = saved_tensor_hooks()
        if hooks in self.hooks:  # where it was, or out of a region again
            self.hooks = self.hooks[: self.hooks.index(hooks) + 1]
            return
        self.hooks = (*self.hooks, hooks)
        at_entry, resume, statistics = replace(self, states=dict(self.states)), resuming(), self.carry.statistics
        at_entry.hooks = ()  # which hold the region, and that is to hold this
        at_entry.noise = None if self.noise is None else replace(self.noise)

        def wrap(recompute: Callable[..., None]) -> Callable[..., None]:
            self.inside += 1  # what is copied here is none of the backbone's
            statistics.note()
            self.inside -= 1

            def run_again(*args: object) -> None:
                again = replace(at_entry, states=dict(at_entry.states), hooks=(saved_tensor_hooks(),))
                again.noise = None if at_entry.noise is None else replace(at_entry.noise)
                with statistics.restored(), resume(), again._in_place():
                    recompute(*args)

            return run_again

        wrap_recomputation(hooks, name, wrap)

    def _check_writes(self) -> None:
        """Refuse a write in place that the example did not show, since it has spoilt what was kept."""
        written = self.written()
        if written:
            raise RuntimeError(
                f"{type(self.cut.backbone).__name__} wrote in place into a tensor that is needed again ({written[0]}), "
                "which it did not do with the example the loop was built with: build the loop with an example that "
                "shows it, or take the write (inplace=True, add_, +=) out of the backbone."
            )

    def ordered_states(self) -> tuple[Tensor, ...]:
        """h_0^(l) from the lowest site to the highest."""
        missing = [name for rank, name in enumerate(self.cut.plan.sites) if rank not in self.states]
        if missing:
            raise PathError(self._lost(f"did not run site '{missing[0]}'"))
        return tuple(self.states[rank] for rank in range(len(self.states)))

    def call_with_hooks(
        self, module: nn.Module, call: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Answer the call of a module with hooks, in which other tools work: FSDP2 gathers the weights there."""
        if self.passed or self.inside:
            return call(*args, **kwargs)
        if module not in self.cut.around and module not in self.cut.watched:
            return self.call_module(module, call, args, kwargs)  # taped as a whole, so that its hooks run once
        hooking, self.hooking = self.hooking, True
        output = call(*args, **kwargs)
        self.hooking = hooking
        return output

    def call_between_hooks(
        self, module: nn.Module, forward: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Answer the call of such a module's forward."""
        hooking, self.hooking = self.hooking, False
        output = self.call_module(module, forward, args, kwargs)
        self.hooking = hooking
        return output

    def call_module(
        self, module: nn.Module, forward: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Answer a call of a submodule."""
        self._look_for_checkpointing(self.cut.names[module])
        if module in self.cut.only_around:
            return forward(*args, **kwargs)
        if self.passed or module in self.cut.around:
            output = self._run_module(module, forward, args, kwargs)
        elif module is self.cut.start and not self.inside:
            output = self._finish_start(forward, args, kwargs)
        elif self.carry is not None:
            output = self._next_from_tape(module)
        else:
            output = self._record_module(module, forward, args, kwargs)
        return self._note_source(module, output)

    def _run_module(
        self, module: nn.Module, forward: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Run a module that comes after the start site, or is around it."""
        name, rank = self.cut.names[module], self.cut.ranks.get(module)
        self.ran_after[name] = module
        step_norm = None if self.carry is None else self.cut.step_norm
        if step_norm is None or not isinstance(module, _BatchNorm) or not step_norm.applies(module):
            output = forward(*args, **kwargs)
        elif has_own_forward(module):
            self.norm = module
            output = forward(*args, **kwargs)
            self.norm = None
        else:
            output = step_norm(name, module, args[0] if args else kwargs["input"], self.step)
        return output if rank is None else self._finish_site(rank, output)

    def call_function(self, function: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        """Answer a call of a torch function."""
        # reading an attribute such as x.shape costs nothing, and other tools' hooks do it at times of their own
        if self.inside or self.hooking or function in _NEVER_TAPED or getattr(function, "__name__", "") == "__get__":
            return function(*args, **kwargs)
        if function in _MAYBE_ANOTHER_S and called_by_checkpoint(depth=3):
            return function(*args, **kwargs)
        if not self.passed:
            self._look_for_checkpointing(_name(function))
        if self.passed:
            return self._inside_norm(self.norm, function, args, kwargs) if self.norm else function(*args, **kwargs)
        if self.carry is not None:
            return self._next_from_tape(function)
        output = function(*args, **kwargs)
        self.tape.append((function, contents(output)))
        return output

    def _inside_norm(
        self, norm: _BatchNorm, function: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Normalise at this step inside the forward of a batch norm that does more than that."""
        if function is F.batch_norm and self.cut.step_norm is not None:
            x = args[0] if args else kwargs["input"]
            return self.cut.step_norm(self.cut.names[norm], norm, x, self.step)
        if function is Tensor.add_ and args and args[0] is norm.num_batches_tracked:
            return args[0]  # which counts the batches of step 0
        return function(*args, **kwargs)

    def _finish_start(self, forward: Function, args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        start = self.cut.plan.start
        if self.carry is not None:
            if self.position != len(self.carry.tape):
                raise PathError(self._lost("reached its lowest site by another path"))
            self._pass_start()
            return self._visit(start, self.raw[start], self.carry.start_returned)
        self.inside += 1
        output = forward(*args, **kwargs)
        self.inside -= 1
        self._pass_start()
        for index, (caller, value) in enumerate(self.tape):
            self.tape[index] = (caller, self._keep(f"tape {index}", value))
        self.start_returned = contents(output)
        return self._finish_site(start, output)

    def _finish_site(self, rank: int, output: object) -> object:
        if rank in self.states:
            raise PathError(self._lost(f"ran site '{self.cut.plan.sites[rank]}' twice"))
        if any(later > rank for later in self.states):
            raise PathError(self._lost(f"ran site '{self.cut.plan.sites[rank]}' after one that it ran before"))
        self.inside += 1  # what reading, writing and adapters call is none of the backbone's
        try:
            hidden = self.cut.plan.layouts[rank].read(output)
        except (TypeError, LookupError, AttributeError) as error:
            raise TypeError(
                f"site '{self.cut.plan.sites[rank]}' does not return what it did with the example the loop was built "
                f"with: {error}."
            ) from error
        self.inside -= 1
        if self.visit is None or rank < self.cut.plan.start:
            kept = self._keep(f"site {rank}", hidden)
            assert isinstance(kept, Tensor)
            self.states[rank] = kept
            return output
        return self._visit(rank, hidden, output)

    def _visit(self, rank: int, hidden: Tensor, output: object) -> object:
        """Let the schedule have its say at a site, and put its answer where the hidden state stood."""
        assert self.visit is not None
        self.inside += 1
        with contextlib.nullcontext() if self.noise is None or not self.passed else self.noise.left():
            self.states[rank] = state = self.visit(rank, hidden)
        if self.cut.copies(f"site {rank}"):
            state = state.clone()
        written = self.cut.plan.layouts[rank].write(output, state)
        self.inside -= 1
        return written

    def _record_module(
        self, module: nn.Module, forward: Function, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        self.inside += 1
        output = forward(*args, **kwargs)
        self.inside -= 1
        rank = self.cut.ranks.get(module)
        if rank is not None:
            output = self._finish_site(rank, output)
        if not self.inside:
            self.tape.append((module, contents(output)))
        return output

    def _note_source(self, module: nn.Module, output: object) -> object:
        if module is self.cut.source:
            self.inside += 1
            read = self.cut.plan.source_layout.read(output)
            self.inside -= 1
            kept = self._keep("source", read)
            assert isinstance(kept, Tensor)
            self.source = kept
        return output

    def _next_from_tape(self, caller: object) -> object:
        assert self.carry is not None
        if self.position >= len(self.carry.tape):
            raise PathError(self._lost(f"called {_name(caller)} where it did not before"))
        recorded, value = self.carry.tape[self.position]
        if recorded is not caller:
            raise PathError(self._lost(f"called {_name(caller)} where it called {_name(recorded)} before"))
        copies = self.cut.copies(f"tape {self.position}")
        self.position += 1
        return self._copy(value) if copies else contents(value)

    def _keep(self, key: str, value: object) -> object:
        """Keep a value for later steps: a copy where it is known to be written in place, else itself under watch."""
        if self.watch or not self.cut.copies(key):
            if not torch.is_inference_mode_enabled():
                self.inside += 1  # asking is none of the backbone's calls either
                self.kept[key] = (value, versions(value))
                self.inside -= 1
            return value
        return self._copy(value)

    def written(self) -> list[str]:
        """What has been written in place since it was kept."""
        return [key for key, (value, before) in self.kept.items() if versions(value) != before]

    def _copy(self, value: object) -> object:
        """Copy every tensor in a value; this is none of the backbone's calls, so it must not meet the tape."""
        self.inside += 1
        copied = copy_tensors(value)
        self.inside -= 1
        return copied

    def _lost(self, what: str) -> str:
        return (
            f"in a replay {type(self.cut.backbone).__name__} {what}: its forward must take the same path at every "
            "step, so choose sites where it does, wrap a part of it that does, or set to 0 what drops layers at random "
            "(layerdrop)."
        )


_NEVER_TAPED: set[object] = {torch._C._set_grad_enabled, torch.device}  # which other tools call at times of their own
_MAYBE_ANOTHER_S: set[object] = {Tensor.detach}  # which checkpointing calls on what it saves


def contents(value: object) -> object:
    """The same tensors in containers of their own, since a forward may pop what a list holds."""
    return value if isinstance(value, Tensor) else pytree.tree_map(lambda leaf: leaf, value)


def _name(caller: object) -> str:
    return str(getattr(caller, "__name__", type(caller).__name__))
