"""The traced cut: torch.fx's graph of the backbone, split into one graph for step 0 and one per stage for the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchcbl.calls import Call
from torchcbl.stages.base import Cut, FirstPass, Plan, Visit
from torchcbl.stages.tracing import trace
from torchcbl.step_norm import StepNorm, apply_mask, draw_mask, is_dropout


class TracedCut(Cut):
    """Run the stages as graphs.

    Every node of the traced graph gets a level: the highest site it depends on, -1 for those that no site reaches.
    Level -1 is the prefix; the nodes of level l run as soon as site l has been visited. So a residual path that
    crosses a cut, or a skip from the lowest site to the head, needs no treatment of its own.

    Args:
        backbone: The network; its modules are used, not copied.
        plan: Sites in execution order, where reruns start, and how the backbone is called.
        step_norm: What batch norms of the stages do; None leaves them as they are.

    Raises:
        NotTraceable: See `trace`.
    """

    def __init__(self, backbone: nn.Module, plan: Plan, step_norm: StepNorm | None = None) -> None:
        names = plan.sites if plan.source is None else (*plan.sites, plan.source)
        super().__init__(backbone)
        self.graph, nodes = trace(backbone, plan.pattern, names)
        self.sites = [nodes[name] for name in plan.sites]
        self.start = plan.start
        self.source = None if plan.source is None else nodes[plan.source]
        self.output: fx.Node = next(iter(reversed(self.graph.nodes))).args[0]
        self.writes = plan.writes
        self.modules = dict(backbone.named_modules(remove_duplicate=False))
        self.levels = self._find_levels()
        self.step_norm = step_norm
        self._programs = _Builder(self).build()

    def replayed_modules(self) -> dict[str, nn.Module]:
        """The modules that run again at every step, by name."""
        return {
            str(node.target): self.modules[str(node.target)]
            for node in self.graph.nodes
            if node.op == "call_module" and self.levels[node] >= self.start
        }

    def first(self, call: Call) -> FirstPass:
        """Run step 0; see `Cut.first`."""
        output, source, states, carry = self._programs.first(*call.args, **call.kwargs)
        return FirstPass(output, source, states, carry)

    def rerun(self, first: FirstPass, visit: Visit, step: int) -> tuple[Tensor, Tensor | None]:
        """Run the stages again; see `Cut.rerun`."""
        programs = self._programs
        carry = first.carry
        assert isinstance(carry, tuple)
        values: dict[str, object] = dict(zip(programs.carried, carry, strict=True))
        for index, stage in enumerate(programs.stages, self.start):
            name = self.sites[index].name
            raw = values.get(name, first.states[index])
            assert isinstance(raw, Tensor)
            values[name] = visit(index, raw)
            outputs = stage.run(step, *(values[key] for key in stage.inputs))
            values.update(zip(stage.outputs, outputs, strict=True))
        output = values.get(self.output.name, first.output)
        source = None if self.source is None else values.get(self.source.name, first.source)
        assert isinstance(output, Tensor)
        return output, source  # type: ignore[return-value]

    def find_writes(self, call: Call) -> dict[str, tuple[str, ...]]:
        """Run the graph on an example and note which nodes write in place into which earlier values.

        A value that is kept for later steps must be a copy when a stage writes into it (ReLU(inplace=True) right
        after a site does).
        """
        finder = _WriteFinder(fx.GraphModule(self.backbone, self.graph))
        with torch.no_grad():
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            defaults = {node: node.args[0] if node.args else None for node in inputs}
            rest = inputs[len(call.args) :]
            finder.run(*call.args, *(call.kwargs.get(str(node.target), defaults[node]) for node in rest))
        return {name: tuple(writers) for name, writers in finder.writers.items()}

    def _find_levels(self) -> dict[fx.Node, int]:
        rank = {node: index for index, node in enumerate(self.sites)}
        levels: dict[fx.Node, int] = {}
        for node in self.graph.nodes:
            levels[node] = max((rank.get(used, levels[used]) for used in node.all_input_nodes), default=-1)
        return levels


@dataclass(frozen=True)
class _Stage:
    """The nodes of one level as a function (step, *inputs) -> outputs."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class _Programs:
    """What one start needs: the whole network with its carried values, and the stages."""

    first: Callable[..., tuple[Tensor, Tensor | None, tuple[Tensor, ...], tuple[object, ...]]]
    carried: tuple[str, ...]
    stages: tuple[_Stage, ...]


class _NormAtStep(nn.Module):
    """A batch norm as a stage calls it: with the step."""

    def __init__(self, name: str, norm: _BatchNorm, step_norm: StepNorm) -> None:
        super().__init__()
        self.name = name
        self.norm = norm
        self.step_norm = step_norm

    def forward(self, x: Tensor, step: int) -> Tensor:
        """Normalise x at step tau."""
        normalised: Tensor = (
            self.step_norm(self.name, self.norm, x, step) if self.step_norm.applies(self.norm) else self.norm(x)
        )
        return normalised


class _DrawMask(nn.Module):
    """A dropout split in two: this draws the mask, `apply_mask` applies it."""

    def __init__(self, dropout: nn.Module) -> None:
        super().__init__()
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor | None:
        """Draw the mask for x."""
        return draw_mask(self.dropout, x)


class _Fetch(nn.Module):
    """A parameter or buffer, fetched from its owner at each call so that `.to()` and sharding are seen."""

    def __init__(self, owner: nn.Module, name: str) -> None:
        super().__init__()
        self.owner = owner
        self.name = name

    def forward(self) -> Tensor:
        """Return the tensor as it is now."""
        tensor: Tensor = getattr(self.owner, self.name)
        return tensor


class _Builder:
    """Build the programs of a cut."""

    def __init__(self, cut: TracedCut) -> None:
        self.cut = cut
        self.start = cut.start
        self.replayed = {
            node
            for node in cut.graph.nodes
            if cut.levels[node] >= cut.start and node.op not in ("placeholder", "output")
        }
        self.masked = {node for node in self.replayed if node.op == "call_module" and self._drops(node)}

    def build(self) -> _Programs:
        """Build the first pass and the stages."""
        stages = tuple(self._stage(level) for level in range(self.start, len(self.cut.sites)))
        made = {name for stage in stages for name in stage.outputs}
        made |= {site.name for site in self.cut.sites[self.start :]}
        needed = {name for stage in stages for name in stage.inputs} - made
        carried = tuple(sorted(needed))
        return _Programs(self._first(carried), carried, stages)

    def _drops(self, node: fx.Node) -> bool:
        return is_dropout(self.cut.modules[str(node.target)])

    def _written(self, name: str) -> str | None:
        """The first node that writes in place into the value `name` once it has been kept.

        What the prefix writes belongs to the value; a site and the context's source are kept as soon as they are there.
        """
        ranks = {site.name: rank for rank, site in enumerate(self.cut.sites)}
        kept_at = min(ranks.get(name, self.cut.start), self.cut.start)
        if self.cut.source is not None and name == self.cut.source.name:
            kept_at = -1
        levels = {node.name: level for node, level in self.cut.levels.items()}
        return next((writer for writer in self.cut.writes.get(name, ()) if levels[writer] >= kept_at), None)

    def _stage(self, level: int) -> _Stage:
        members = [node for node in self.cut.graph.nodes if node in self.replayed and self.cut.levels[node] == level]
        inside = set(members)
        used = [node for member in members for node in member.all_input_nodes if node not in inside]
        inputs = list(dict.fromkeys(node.name for node in used))
        inputs += [_mask_name(node) for node in members if node in self.masked]
        wanted = {self.cut.output, self.cut.source, *self.cut.sites}
        outputs = [node for node in members if node in wanted or set(node.users) - inside]
        graph, modules = fx.Graph(), dict[str, nn.Module]()
        step = graph.placeholder("step")
        values = {name: graph.placeholder(f"input_{index}") for index, name in enumerate(inputs)}
        for name in inputs:
            if self._written(name) is not None:
                values[name] = graph.call_function(torch.clone, (values[name],))
        kept: dict[str, fx.Node] = {}
        for node in members:
            values[node.name] = self._copy_replayed(graph, modules, node, values, step)
            if node == self.cut.source and self._written(str(node.name)) is not None:
                kept[str(node.name)] = graph.call_function(torch.clone, (values[str(node.name)],))
        graph.output(tuple(kept.get(node.name, values[node.name]) for node in outputs))
        module = fx.GraphModule(modules, graph)
        return _Stage(tuple(inputs), tuple(node.name for node in outputs), module.forward)

    def _copy_replayed(
        self,
        graph: fx.Graph,
        modules: dict[str, nn.Module],
        node: fx.Node,
        values: dict[str, fx.Node],
        step: fx.Node,
    ) -> fx.Node:
        if node in self.masked:
            x = values[node.all_input_nodes[0].name]
            return graph.call_function(apply_mask, (x, values[_mask_name(node)]))
        if node.op == "call_module":
            name = str(node.target)
            module = self.cut.modules[name]
            if isinstance(module, _BatchNorm) and self.cut.step_norm is not None:
                target = f"_cbl_norm_{node.name}"
                modules[target] = _NormAtStep(name, module, self.cut.step_norm)
                return graph.call_module(target, (values[node.all_input_nodes[0].name], step))
        return self._copy(graph, modules, node, values)

    def _copy(
        self, graph: fx.Graph, modules: dict[str, nn.Module], node: fx.Node, values: dict[str, fx.Node]
    ) -> fx.Node:
        if node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            modules[f"_cbl_fetch_{node.name}"] = _Fetch(self.cut.modules[owner], name)
            return graph.call_module(f"_cbl_fetch_{node.name}")
        if node.op == "call_module":
            modules[str(node.target)] = self.cut.modules[str(node.target)]
        return graph.node_copy(node, lambda used: values[used.name])

    def _first(
        self, carried: tuple[str, ...]
    ) -> Callable[..., tuple[Tensor, Tensor | None, tuple[Tensor, ...], tuple[object, ...]]]:
        graph, modules, values = fx.Graph(), dict[str, nn.Module](), dict[str, fx.Node]()
        kept = {*carried, *(site.name for site in self.cut.sites)}
        if self.cut.source is not None:
            kept.add(self.cut.source.name)
        saved: dict[str, fx.Node] = {}
        due: dict[str, list[str]] = {}
        for name in kept:
            writer = self._written(name)
            if writer is not None:
                due.setdefault(writer, []).append(name)
        for node in self.cut.graph.nodes:
            for name in due.get(node.name, ()):
                saved[name] = graph.call_function(torch.clone, (values[name],))
            if node.op == "output":
                break
            if node in self.masked:
                target = f"_cbl_mask_{node.name}"
                modules[target] = _DrawMask(self.cut.modules[str(node.target)])
                x = values[node.all_input_nodes[0].name]
                values[_mask_name(node)] = graph.call_module(target, (x,))
                values[node.name] = graph.call_function(apply_mask, (x, values[_mask_name(node)]))
            else:
                values[node.name] = self._copy(graph, modules, node, values)
        keep = {**values, **saved}
        source = None if self.cut.source is None else keep[self.cut.source.name]
        states = tuple(keep[site.name] for site in self.cut.sites)
        graph.output((values[self.cut.output.name], source, states, tuple(keep[name] for name in carried)))
        return fx.GraphModule(modules, graph).forward


def _mask_name(node: fx.Node) -> str:
    return f"{node.name}.mask"  # no node has a dot in its name


class _WriteFinder(fx.Interpreter):
    """Run a graph and note, by torch's version counters, which nodes write into which earlier values."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.writers: dict[str, list[str]] = {}
        self._alive: dict[str, tuple[Tensor, int]] = {}

    def run_node(self, n: fx.Node) -> object:
        """Run one node, then look whose version has moved."""
        result = super().run_node(n)
        for name, (tensor, version) in self._alive.items():
            if tensor._version != version:
                self.writers.setdefault(name, []).append(n.name)
                self._alive[name] = (tensor, tensor._version)
        if isinstance(result, Tensor):
            self._alive[n.name] = (result, result._version)
        return result
