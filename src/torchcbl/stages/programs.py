"""The programs of a traced cut: the traced graph, taken apart and put together as functions of plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchcbl.stages.base import copy_tensors
from torchcbl.step_norm import Step, StepNorm, apply_mask, draw_mask, is_dropout

if TYPE_CHECKING:
    from torchcbl.stages.traced import TracedCut


@dataclass(frozen=True)
class Stage:
    """The nodes of one level as a function (step, *inputs) -> outputs; it runs once its site has been visited."""

    site: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    run: Callable[..., tuple[object, ...]]


@dataclass(frozen=True)
class Programs:
    """What one start needs: the whole network with its carried values, and the stages."""

    first: Callable[..., tuple[tuple[object, ...], object, tuple[object, ...], tuple[object, ...]]]
    carried: tuple[str, ...]
    stages: tuple[Stage, ...]


class _NormAtStep(nn.Module):
    """A batch norm as a stage calls it: with the step."""

    def __init__(self, name: str, norm: _BatchNorm, step_norm: StepNorm) -> None:
        super().__init__()
        self.name = name
        self.norm = norm
        self.step_norm = step_norm

    def forward(self, x: Tensor, step: Step) -> Tensor:
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


class Builder:
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

    def build(self) -> Programs:
        """Build the first pass and the stages."""
        stages = tuple(self._stage(level) for level in range(self.start, len(self.cut.sites)))
        needed = {name for stage in stages for name in stage.inputs}
        needed |= {node.name for node in self.cut.returned_nodes if node not in self.replayed}
        needed |= {site.name for site in self.cut.sites[self.start :]} - {
            name for stage in stages for name in stage.outputs
        }
        needed -= {name for stage in stages for name in stage.outputs}
        carried = tuple(sorted(needed))
        return Programs(self._first(carried), carried, stages)

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

    def _stage(self, level: int) -> Stage:
        members = [node for node in self.cut.graph.nodes if node in self.replayed and self.cut.levels[node] == level]
        inside = set(members)
        used = [node for member in members for node in member.all_input_nodes if node not in inside]
        inputs = list(dict.fromkeys(node.name for node in used))
        inputs += [_mask_name(node) for node in members if node in self.masked]
        wanted = {*self.cut.returned_nodes, self.cut.source, *self.cut.sites}
        outputs = [node for node in members if node in wanted or set(node.users) - inside]
        graph, modules = fx.Graph(), dict[str, nn.Module]()
        step = graph.placeholder("step")
        values = {name: graph.placeholder(f"input_{index}") for index, name in enumerate(inputs)}
        for name in inputs:
            if self._written(name) is not None:
                values[name] = graph.call_function(copy_tensors, (values[name],))
        kept: dict[str, fx.Node] = {}
        for node in members:
            values[node.name] = self._copy_replayed(graph, modules, node, values, step)
            if node == self.cut.source and self._written(str(node.name)) is not None:
                kept[str(node.name)] = graph.call_function(copy_tensors, (values[str(node.name)],))
        graph.output(tuple(kept.get(node.name, values[node.name]) for node in outputs))
        module = fx.GraphModule(modules, graph)
        return Stage(self.cut.sites[level].name, tuple(inputs), tuple(node.name for node in outputs), module.forward)

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
    ) -> Callable[..., tuple[tuple[object, ...], object, tuple[object, ...], tuple[object, ...]]]:
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
                saved[name] = graph.call_function(copy_tensors, (values[name],))
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
        returned = tuple(values[node.name] for node in self.cut.returned_nodes)
        graph.output((returned, source, states, tuple(keep[name] for name in carried)))
        return fx.GraphModule(modules, graph).forward


def _mask_name(node: fx.Node) -> str:
    return f"{node.name}.mask"  # no node has a dot in its name
