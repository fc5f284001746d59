"""The replayed cut: the backbone's own forward is called again, and what lies below the start site is not.

During step 0 a tape notes what is returned by every module and every torch function that finishes before the start
site. In a rerun the same calls come in the same order and are answered from the tape, so nothing below the site is
computed again; from the site on, everything runs. The state of one call lives in a `Run` (`replay.py`); what
hands it the calls is `interception.py`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchcbl.backbone.calls import Call
from torchcbl.eager import uncompiled
from torchcbl.stages.base import Cut, FirstPass, Passed, Plan, Visit
from torchcbl.stages.interception import intercepting
from torchcbl.stages.replay import Carry, PathError, Run
from torchcbl.step_norm import CallStatistics, Step, StepNorm, has_own_forward


class ReplayedCut(Cut):
    """Call the backbone again, answering from a tape whatever finished before the start site.

    Args:
        backbone: The network.
        plan: Sites in execution order, and where reruns start.
        step_norm: What batch norms after the start site do at later steps; None leaves them as they are.
        copy_all: Keep copies of everything, as when nothing is known about writes in place.
    """

    def __init__(
        self, backbone: nn.Module, plan: Plan, step_norm: StepNorm | None = None, copy_all: bool = False
    ) -> None:
        super().__init__(backbone)
        self.plan = plan
        self.step_norm = step_norm
        self.copy_all = copy_all
        self.ranks = {backbone.get_submodule(name): rank for rank, name in enumerate(plan.sites)}
        self.source = None if plan.source is None else backbone.get_submodule(plan.source)
        named = [(name, module) for name, module in backbone.named_modules() if not _inside_script(backbone, name)]
        self.names = {module: name for name, module in named}
        start = plan.sites[plan.start]
        self.start = backbone.get_submodule(start)
        above = {start[:end] for end in range(len(start)) if start[end] == "."} | {""}
        self.around = {module for module, name in self.names.items() if name in above}
        """The modules that the start site is inside of: they run at every step, but for what finished within them."""
        self.watched = {*self.ranks, self.source}
        self.only_around = self.around - self.watched
        self.intercepted = frozenset(self.names)
        self.sees_functions = any(_needs_functions(module) for module in self.names)
        self._replayed: dict[str, nn.Module] = {}

    def replanned(self, plan: Plan, step_norm: StepNorm | None) -> ReplayedCut:
        """See `Cut.replanned`."""
        return ReplayedCut(self.backbone, plan, step_norm)

    def replayed_modules(self) -> dict[str, nn.Module]:
        """Return the modules that ran after the start site; known once `find_writes` has run."""
        return self._replayed

    def copies(self, key: str) -> bool:
        """Say whether a kept value is written in place later, so that a copy must be kept."""
        return self.copy_all or key in self.plan.writes

    def session(self) -> AbstractContextManager[None]:
        """Hold the interceptors over the steps of a call; see `Cut.session`."""
        return nullcontext() if torch.compiler.is_compiling() else intercepting(self.intercepted)

    def first(self, call: Call) -> FirstPass:
        """Run step 0; see `Cut.first`."""
        run = Run(self)
        returned = _first(run, call)
        norms = (self.backbone,) if self.step_norm is None else (self.backbone, self.step_norm)
        noise, statistics = (run.noise_before, run.noise_at_start), CallStatistics(*norms)
        carry = Carry(call, run.tape, run.start_returned, *noise, statistics, run.had_gradients)
        return FirstPass(returned, run.source, run.ordered_states(), carry)

    def rerun(self, first: FirstPass, visit: Visit, step: Step) -> Passed:
        """Run from the start site on; see `Cut.rerun`."""
        carry = first.carry
        assert isinstance(carry, Carry)
        returned, source = _rerun(self, carry, visit, step, first.states)
        return Passed(returned, source if source is not None else first.source)

    def kept(self, first: FirstPass) -> object:
        """See `Cut.kept`."""
        carry = first.carry
        assert isinstance(carry, Carry)
        call = carry.call
        values = [value for _, value in carry.tape]
        return first.states, first.source, call.args, call.kwargs, values, carry.start_returned

    def with_kept(self, first: FirstPass, kept: object) -> FirstPass:
        """See `Cut.with_kept`."""
        carry = first.carry
        assert isinstance(carry, Carry)
        assert isinstance(kept, tuple)
        states, source, args, kwargs, values, start_returned = kept
        tape = [(caller, value) for (caller, _), value in zip(carry.tape, values, strict=True)]
        carry = replace(carry, call=Call(args, kwargs), tape=tape, start_returned=start_returned)
        return FirstPass(first.returned, source, states, carry)

    def find_writes(self, call: Call) -> dict[str, tuple[str, ...]]:
        """Run an example and find what is written in place after it was kept; see `Cut.find_writes`."""
        run = Run(self, watch=True)
        run.execute(call)
        self._replayed = run.ran_after
        return dict.fromkeys(run.written(), ())


def _needs_functions(module: nn.Module) -> bool:
    """Say whether torch functions must be seen after the start site too, whatever was dropped out.

    A batch norm that does more than that normalises by function; attention of torch's own computes otherwise, by a
    fused path, where nobody watches.
    """
    if isinstance(module, _BatchNorm):
        return has_own_forward(module)
    return isinstance(module, (nn.MultiheadAttention, nn.TransformerEncoderLayer))


def _inside_script(backbone: nn.Module, name: str) -> bool:
    """Say whether a submodule is part of a scripted one, whose parts Python never calls."""
    outer, _, _ = name.rpartition(".")
    return bool(outer) and isinstance(backbone.get_submodule(outer), torch.jit.ScriptModule)


@uncompiled
def _first(run: Run, call: Call) -> object:
    """Execute step 0; torch.compile cannot follow interceptors."""
    return run.execute(call)


@uncompiled
def _rerun(
    cut: ReplayedCut, carry: Carry, visit: Visit, step: Step, states: tuple[Tensor, ...]
) -> tuple[object, Tensor | None]:
    """Execute a rerun; returns what the backbone does, and the context's source where that ran again.

    A forward that makes a table for later calls, as of a mask, takes another path then, and it made it at step 0. So
    where nothing but the tape has been asked yet, step 0 is taken once more for another tape.
    """
    run = Run(cut, carry, visit, step, states)
    try:
        returned = run.execute(carry.call)
    except PathError:
        if run.passed or not carry.retake(cut, states):
            raise
        run = Run(cut, carry, visit, step, states)
        returned = run.execute(carry.call)
    return returned, run.source
