"""The traced cut: torch.fx's graph of the backbone, split into one graph for step 0 and one per stage for the rest."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn

from torchcbl.backbone.calls import Call
from torchcbl.stages.base import Cut, FirstPass, Passed, Plan, Visit, tensors_in
from torchcbl.stages.programs import Builder
from torchcbl.stages.tracing import NotTraceable, Traced, trace
from torchcbl.step_norm import Step, StepNorm, is_dropout


class TracedCut(Cut):
    """Run the stages as graphs.

    Every node of the traced graph gets a level: the highest site it depends on, -1 for those that no site reaches.
    Level -1 is the prefix; the nodes of level l run as soon as site l has been visited. So a residual path that
    crosses a cut, or a skip from the lowest site to the head, needs no treatment of its own.

    Args:
        backbone: The network; its modules are used, not copied.
        plan: Sites in execution order, where reruns start, and how the backbone is called.
        step_norm: What batch norms of the stages do; None leaves them as they are.
        traced: What `trace` returned for the backbone as it is now; None to trace it.

    Raises:
        NotTraceable: See `trace`.
    """

    def __init__(
        self, backbone: nn.Module, plan: Plan, step_norm: StepNorm | None = None, traced: Traced | None = None
    ) -> None:
        names = plan.sites if plan.source is None else (*plan.sites, plan.source)
        super().__init__(backbone)
        self._traced = trace(backbone, plan.pattern, names) if traced is None else traced
        self.graph, nodes = self._traced
        self.sites = [nodes[name] for name in plan.sites]
        self.start = plan.start
        self.source = None if plan.source is None else nodes[plan.source]
        self.returned = next(iter(reversed(self.graph.nodes))).args[0]
        """A node, or nodes in tuples, lists and dicts."""
        self.returned_nodes = nodes_in(self.returned)
        self.layouts = plan.layouts
        self.source_layout = plan.source_layout
        self.writes = plan.writes
        self.modules = dict(backbone.named_modules(remove_duplicate=False))
        self.levels = self._find_levels()
        self.step_norm = step_norm
        self._programs = Builder(self).build()

    def replanned(self, plan: Plan, step_norm: StepNorm | None) -> TracedCut:
        """Cut the same graph again; see `Cut.replanned`."""
        return TracedCut(self.backbone, plan, step_norm, self._traced)

    def replayed_modules(self) -> dict[str, nn.Module]:
        """The modules that run again at every step, by name."""
        return {
            str(node.target): self.modules[str(node.target)]
            for node in self.graph.nodes
            if node.op == "call_module" and self.levels[node] >= self.start
        }

    def first(self, call: Call) -> FirstPass:
        """Run step 0; see `Cut.first`."""
        returned, source, raw, carry = self._programs.first(*call.args, **call.kwargs)
        states = tuple(layout.read(value) for layout, value in zip(self.layouts, raw, strict=True))
        values = dict(zip((node.name for node in self.returned_nodes), returned, strict=True))
        return FirstPass(put_in(self.returned, values), self._read_source(source), states, carry)

    def rerun(self, first: FirstPass, visit: Visit, step: Step) -> Passed:
        """Run the stages again; see `Cut.rerun`."""
        carry = first.carry
        assert isinstance(carry, tuple)
        values: dict[str, object] = dict(zip(self._programs.carried, carry, strict=True))
        for index, stage in enumerate(self._programs.stages, self.start):
            layout, made = self.layouts[index], values[stage.site]
            state = visit(index, layout.read(made))
            values[stage.site] = layout.write(made, state) if layout.path or layout.batch_dim else state
            outputs = stage.run(step, *[values[name] for name in stage.inputs])
            values.update(zip(stage.outputs, outputs, strict=True))
        source = None if self.source is None else self._read_source(values.get(self.source.name, first.source))
        return Passed(put_in(self.returned, values), source)

    def kept(self, first: FirstPass) -> object:
        """See `Cut.kept`."""
        return first.states, first.source, first.carry

    def with_kept(self, first: FirstPass, kept: object) -> FirstPass:
        """See `Cut.with_kept`."""
        assert isinstance(kept, tuple)
        states, source, carry = kept
        return FirstPass(first.returned, source, states, carry)

    def _read_source(self, value: object) -> Tensor | None:
        return None if value is None or self.source is None else self.source_layout.read(value)

    def find_writes(self, call: Call) -> dict[str, tuple[str, ...]]:
        """Run the graph on an example and note which nodes write in place into which earlier values.

        A value that is kept for later steps must be a copy when a stage writes into it (ReLU(inplace=True) right
        after a site does).

        Raises:
            NotTraceable: A parameter or buffer is written, or in training a dropout writes into what is read again.
        """
        finder = _WriteFinder(fx.GraphModule(self.backbone, self.graph))
        with torch.no_grad():
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            defaults = {node: node.args[0] if node.args else None for node in inputs}
            rest = inputs[len(call.args) :]
            finder.run(*call.args, *(call.kwargs.get(str(node.target), defaults[node]) for node in rest))
        if any(node.op == "get_attr" and node.name in finder.writers for node in self.graph.nodes):
            raise NotTraceable("its forward writes into its parameters or buffers")
        if finder.dropouts:  # whose masks are factors here, and write nothing
            raise NotTraceable(f"'{finder.dropouts[0]}' drops out in place what is read again")
        return {name: tuple(writers) for name, writers in finder.writers.items()}

    def _find_levels(self) -> dict[fx.Node, int]:
        rank = {node: index for index, node in enumerate(self.sites)}
        levels: dict[fx.Node, int] = {}
        for node in self.graph.nodes:
            levels[node] = max((rank.get(used, levels[used]) for used in node.all_input_nodes), default=-1)
        return levels


class _WriteFinder(fx.Interpreter):
    """Run a graph and note, by torch's version counters, which nodes write into which earlier values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.writers: dict[str, list[str]] = {}
        self.dropouts: list[str] = []
        self._alive: dict[str, list[tuple[Tensor, int]]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node, then look whose version has moved."""
        result = super().run_node(n)
        if n.op == "call_module" and self._drops_what_is_read_again(n):
            self.dropouts.append(str(n.target))
        for name, alive in self._alive.items():
            if any(tensor._version != version for tensor, version in alive):
                self.writers.setdefault(name, []).append(n.name)
                self._alive[name] = [(tensor, tensor._version) for tensor, _ in alive]
        self._alive[n.name] = [(tensor, tensor._version) for tensor in tensors_in(result)]
        return result

    def _drops_what_is_read_again(self, n: fx.Node) -> bool:
        """Say whether nodes after this one would see what it writes in training, if it is a dropout in place."""
        module = self.module.get_submodule(str(n.target))
        if not is_dropout(module) or not getattr(module, "inplace", False):
            return False
        written = _storages(self.env[n.all_input_nodes[0]])
        return any(
            user is not n and user not in self.env
            for node, value in self.env.items()
            if _storages(value) & written
            for user in node.users
        )


def _storages(value: object) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors_in(value)}


def nodes_in(argument: object) -> list[fx.Node]:
    """List the nodes in what a graph returns."""
    if isinstance(argument, fx.Node):
        return [argument]
    entries = (
        argument.values() if isinstance(argument, dict) else argument if isinstance(argument, (tuple, list)) else ()
    )
    return [node for entry in entries for node in nodes_in(entry)]


def put_in(argument: object, values: Mapping[str, object]) -> object:
    """Put values in the place of the nodes in what a graph returns, in plain tuples, lists and dicts."""
    if isinstance(argument, fx.Node):
        return values[argument.name]
    if isinstance(argument, dict):
        return {key: put_in(entry, values) for key, entry in argument.items()}
    if isinstance(argument, (tuple, list)):
        entries = [put_in(entry, values) for entry in argument]
        return tuple(entries) if isinstance(argument, tuple) else entries
    return argument
