"""What every cut can do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from torchcbl.backbone.calls import Call
from torchcbl.backbone.layout import Layout
from torchcbl.eager import once_compiled
from torchcbl.solvers.base import NotSelectableError
from torchcbl.stages.selection import Rules, learn, select
from torchcbl.step_norm import Step, StepNorm

Visit = Callable[[int, Tensor], Tensor]
"""Called as visit(l, raw) when site l has been computed; what it returns is the h^(l) the network goes on with."""
Read = Callable[[object], Tensor]
"""Finds y, the batch first, in what the backbone returned."""


@dataclass(frozen=True)
class Passed:
    """What a pass through the backbone, or through its upper part, returns.

    Args:
        returned: The backbone's own output, of whatever type.
        source: What the context is made from when that is a submodule's output, else None.
    """

    returned: object
    source: Tensor | None


@dataclass(frozen=True)
class FirstPass(Passed):
    """Step 0 of one call, and what the later steps need of it.

    Args:
        states: h_0^(l), the sites' hidden states from the lowest to the highest.
        carry: Whatever the cut keeps for its reruns; belongs to this call alone.
    """

    states: tuple[Tensor, ...]
    carry: object


@dataclass(frozen=True)
class Plan:
    """How a backbone is to be cut: plain data, from which the cut can be made again after a copy or a pickle.

    Args:
        kind: "traced" or "replayed".
        sites: Site names in execution order.
        start: Index of the lowest site that a step visits.
        pattern: Number of positional arguments and names of keyword arguments of a call.
        layouts: Where each site's hidden state stands in what the submodule returns.
        source: Name of the submodule the context is made from, or None.
        source_layout: Where its tensor stands.
        writes: Names of values that are written in place after they have been kept, with the writers' names.
        reason: Why the backbone could not be traced; empty for a traced cut.
    """

    kind: str
    sites: tuple[str, ...]
    start: int
    pattern: tuple[int, tuple[str, ...]]
    layouts: tuple[Layout, ...]
    source: str | None = None
    source_layout: Layout = field(default_factory=Layout)
    writes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    reason: str = ""


class Cut(ABC):
    """A backbone cut at its sites.

    Args:
        backbone: The network; its modules are used, not copied.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.backbone = backbone
        self._selection: Rules | None = None
        self._tree = [
            (parent, name, child)
            for parent in backbone.modules()
            if not isinstance(parent, torch.jit.ScriptModule)  # which nobody can change
            for name, child in parent._modules.items()
        ]
        self._counts = {parent: len(parent._modules) for parent, _, _ in self._tree}
        self._forwards = {module: own_forward(module) for module in self._modules()}

    @once_compiled
    def changes(self) -> str:
        """Say which submodule of the backbone was replaced, removed or added after it was cut; empty when none was."""
        for parent, name, child in self._tree:
            if parent._modules.get(name) is not child:
                return (
                    f"submodule '{name}' of {type(parent).__name__} was replaced after the loop was built, which would "
                    "go on with the old one: build the ContextLoop again."
                )
        for parent, count in self._counts.items():
            if len(parent._modules) != count:
                return (
                    f"submodule '{next(reversed(parent._modules))}' of {type(parent).__name__} was added after the "
                    "loop was built, which would go on without it: build the ContextLoop again."
                )
        return ""

    @once_compiled
    def has_hooks(self) -> bool:
        """Say whether a module has hooks on its call or its gradient now, or a `forward` set on it since it was cut."""
        return any(has_hooks(module) or own_forward(module) is not own for module, own in self._forwards.items())

    def _modules(self) -> Iterator[nn.Module]:
        yield self.backbone
        yield from (child for _, _, child in self._tree if child is not None)

    @abstractmethod
    def replanned(self, plan: Plan, step_norm: StepNorm | None) -> Cut:
        """Cut the backbone, which has not changed, again: with other `Plan.writes`, or batch norms that know steps."""

    @abstractmethod
    def replayed_modules(self) -> dict[str, nn.Module]:
        """Return the modules that run again at every step, by name."""

    @abstractmethod
    def find_writes(self, call: Call) -> dict[str, tuple[str, ...]]:
        """Run an example and find what is written in place after it was kept, for `Plan.writes`."""

    def session(self) -> AbstractContextManager[None]:
        """Return a context to hold over the steps of one call, for what they would else set up one by one."""
        return nullcontext()

    @abstractmethod
    def first(self, call: Call) -> FirstPass:
        """Run the whole backbone once (step 0) and keep what `rerun` needs."""

    def select(self, first: FirstPass, call: Call, index: Tensor, read: Read) -> FirstPass:
        """Take samples out of step 0 of a call, given their indices (b,).

        Raises:
            NotSelectableError: The batch of this backbone cannot be taken apart, or a part of it is in train mode,
                where noise is drawn for the whole batch and batch norm reads all of it.
        """
        if any(module.training for module in self._modules()):
            raise NotSelectableError
        batch, kept = len(first.states[0]), self.kept(first)
        if self._selection is not None:
            try:
                return self.with_kept(first, select(kept, self._selection, index, batch))
            except NotSelectableError:  # a call of another form
                pass
        self._selection = rules = self._learn_selection(first, call, batch, read)
        return self.with_kept(first, select(kept, rules, index, batch))

    def _learn_selection(self, first: FirstPass, call: Call, batch: int, read: Read) -> Rules:
        """Run step 0 on half of the batch and see where its samples are; a batch of one cannot tell.

        An argument that all samples share and that is as long as the batch by chance, as a codebook, is halved with it.
        What comes of that is an error or another y, and then nothing is learnt.
        """
        if batch < 2 or call.batch_size() != batch:
            raise NotSelectableError
        index = torch.arange(batch, device=first.states[0].device).roll(1)[: batch - batch // 2]  # in no natural order
        with torch.no_grad():
            try:
                part = self.first(call.selected(index))
                y = read(part.returned)
            except Exception as error:  # the backbone's own, of any kind
                raise NotSelectableError from error
            learn(read(first.returned), y, index, batch)
            return learn(self.kept(first), self.kept(part), index, batch)

    @abstractmethod
    def kept(self, first: FirstPass) -> object:
        """Return what `rerun` needs of step 0, in tuples, lists and dicts."""

    @abstractmethod
    def with_kept(self, first: FirstPass, kept: object) -> FirstPass:
        """Return step 0 with something else in the place of what `kept` returned."""

    @abstractmethod
    def rerun(self, first: FirstPass, visit: Visit, step: Step) -> Passed:
        """Run from the plan's start site to the output again.

        Sites are visited from the lowest to the highest; at the start site, and at any site that none of the visited
        ones feeds, `raw` is what the first pass computed.

        Args:
            first: What `first` returned for this call.
            visit: Given (l, f^l of the states returned so far), returns the state the network goes on with.
            step: tau >= 1, which tells batch norms their statistics.

        Returns:
            The backbone's new output, and the new context source (None when the context comes from the output).
        """


def has_hooks(module: nn.Module) -> bool:
    """Say whether a module has hooks on its call or its gradient, which run only where the module itself is called."""
    hooks = module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
    return any(hooks)


def own_forward(module: nn.Module) -> object:
    """Return the `forward` that was set on a module itself, as accelerate's hooks do; None where its class's runs."""
    found = module.__dict__.get("forward")
    if found is None or isinstance(module, torch.jit.ScriptModule):  # which keeps its methods there
        return None
    return getattr(found, "stands_for", found)  # another loop may be at work in another thread


def copy_tensors(value: object) -> object:
    """Copy every tensor in a value."""
    if isinstance(value, Tensor):
        return value.clone()
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def tensors_in(value: object) -> list[Tensor]:
    """List the tensors in a value."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def close(a: Tensor, b: Tensor) -> bool:
    """Say whether two tensors are equal, up to what another order of the same operations makes of them."""
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True)


def versions(value: object) -> list[int]:
    """Return how often each tensor in a value has been written in place; -1 where torch does not count."""
    return [-1 if tensor.is_inference() else tensor._version for tensor in tensors_in(value)]
