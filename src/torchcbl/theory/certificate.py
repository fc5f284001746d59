"""A certified bound on gamma, from the norms of the layers that a step runs through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.stages.base import tensors_in
from torchcbl.stages.traced import TracedCut, put_in
from torchcbl.step_norm import StepStatistics, module_key
from torchcbl.theory import adapters
from torchcbl.theory.layers import SLOPES, Shape, pointwise, ratio, through, through_batch_norm
from torchcbl.theory.reach import NoBoundError, Reach

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

Visit = Callable[[int, Reach, Shape], Reach]
"""visit(l, reach of the raw h^(l), its shape) -> reach of the refined one."""


class Certifier:
    """Bound what a step of a loop makes of its state, node by node of the traced graph.

    Args:
        net: The loop; its schedule must be "repropagate" and its cut traced.
        call: A batch, in whose shapes (and values, where `at_call`) the bound holds.
        at_call: Whether the bound is for this batch's samples alone, whose values below the sites it may use, or for
            all inputs of these shapes.

    Raises:
        NoBoundError: The loop is none that can be bounded.
    """

    def __init__(self, net: ContextLoop, call: Call, at_call: bool) -> None:
        schedule = net.config.schedule
        if schedule == "literal" or (schedule == "synchronous" and len(net.sites) > 1):
            raise NoBoundError(
                f"with schedule={schedule!r} hidden states go from step to step besides the context, which no product "
                "of norms brings below 1: use schedule='repropagate'"
            )
        if net.config.alpha > 0 and len(net.sites) > 1:
            raise NoBoundError("alpha > 0 with several sites is not Eq. 11's iteration of one map: use alpha=0")
        cut = net.cut_for(call)
        if not isinstance(cut, TracedCut):
            reason = net.plan.reason or "it is called otherwise than in the example, or has hooks"
            raise NoBoundError(f"torch.fx does not show what the backbone computes ({reason})")
        self.net, self.cut, self.at_call = net, cut, at_call
        self.masked = any(name.endswith("attention_mask") for name in call.kwargs)
        with evaluating(net):
            recorded = _run(self.cut, call, at_call)
        self.shapes, self.values, self.plain = recorded.shapes, recorded.constants, recorded.plain
        self.fed = _fed(self.cut)
        self.batch = call.batch_size()
        self.site_of = {node: index for index, node in enumerate(self.cut.sites)}
        source = self.cut.source
        self.source = source.name if source is not None else self._output()

    def _output(self) -> str:
        """The name of the node that is y."""
        layout = self.net.output_layout
        node: object = put_in(self.cut.returned, {node.name: node for node in self.cut.returned_nodes})
        for key in layout.path:
            node = node[key]  # type: ignore[index]
        if not isinstance(node, fx.Node) or layout.packed:
            raise NoBoundError("the output is not one tensor of the traced graph")
        return node.name

    def bound(self) -> Tensor:
        """Return a bound on gamma, the Lipschitz constant of F, (B,) or (1,) float64.

        Raises:
            NoBoundError: A layer, an adapter or the context has none.
        """
        context = self.net.context
        one = Reach(torch.ones(1, dtype=torch.float64), adapters.simplex_size(context))
        z_shape = self.made(Reach.unknown())[1]

        def refine(index: int, h: Reach, shape: Shape) -> Reach:
            return adapters.refined(list(self.net.adapters.values())[index], h, one, shape, z_shape)

        # z -> source -> z and y -> z -> y are bounded by the same product
        return self.made(self.walk(refine))[0].factor

    def made(self, source: Reach) -> tuple[Reach, Shape]:
        """Bound z, given the reach of what it is made from, and say what shape it has."""
        return adapters.made(self.net.context, source, self.shapes[self.source], self.masked)

    def walk(self, visit: Visit) -> Reach:
        """Go through the graph from the lowest site, and return the reach of what the context is made from."""
        known: dict[str, Reach] = {}
        for node in self.cut.graph.nodes:
            if node.op == "output":
                break
            fixed = self.cut.levels[node] < self.cut.start
            known[node.name] = self._held(node, known) if fixed else self._moved(node, known)
            if node in self.site_of:
                if node.name not in self.shapes:
                    raise NoBoundError(f"'{node.name}' returns more than one tensor")
                known[node.name] = visit(self.site_of[node], known[node.name], self.shapes[node.name])
        return known[self.source]

    def _held(self, node: fx.Node, known: Mapping[str, Reach]) -> Reach:
        """What is known of a value below the sites."""
        if self.at_call:
            if node.name not in self.values:
                return Reach.unknown()
            value = self.values[node.name]
            per_sample = node.name in self.fed and value.ndim > 1 and len(value) == self.batch
            return Reach.constant(value, per_sample)
        try:
            return self._moved(node, known)
        except NoBoundError:
            return Reach.unknown()

    def _moved(self, node: fx.Node, known: Mapping[str, Reach]) -> Reach:
        """Bound what a node computes."""
        if node.op in ("placeholder", "get_attr") or node.name in self.plain:
            return Reach.unknown()
        used = [one.name for one in node.all_input_nodes]
        inputs = [(known[one], self.shapes[one]) for one in used if one in self.shapes]
        name = _name(node)
        if name in _PARTS:  # a tuple of parts of one tensor, or one of these parts
            return known[used[0]].kept()
        if node.name not in self.shapes or not inputs:
            raise NoBoundError(f"no bound is known for {name}")
        after = self.shapes[node.name]
        if node.op == "call_module":
            return self._module(str(node.target), inputs, after)
        if name in _FUNCTIONS:
            return _FUNCTIONS[name](node, inputs, after)
        if name.removesuffix("_") in SLOPES:
            return pointwise(name.removesuffix("_"), inputs[0][0])
        if not any(reach.moves for reach, _ in inputs):
            return Reach.unknown()
        raise NoBoundError(f"no bound is known for {name}()")

    def _module(self, name: str, inputs: Inputs, after: Shape) -> Reach:
        module, (reach, before) = self.cut.modules[name], inputs[0]
        if len(inputs) > 1:
            raise NoBoundError(f"'{name}' takes several inputs")
        if isinstance(module, _BatchNorm):
            return through_batch_norm(module, reach, self._variance(name, module))
        return through(module, reach, before, after)

    def _variance(self, name: str, norm: _BatchNorm) -> Tensor | None:
        """The running variance that a batch norm divides by at step T."""
        statistics = self.net.step_norm.statistics
        if module_key(name) in statistics:
            kept = statistics[module_key(name)]
            assert isinstance(kept, StepStatistics)
            if int(kept.num_batches_tracked[-1]):
                return kept.running_var[-1]
        return norm.running_var


def _name(node: fx.Node) -> str:
    if node.op == "call_module" or isinstance(node.target, str):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


Inputs = Sequence[tuple[Reach, Shape]]


def _reshaped(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    return inputs[0][0].kept()


def _spread(node: fx.Node, inputs: Inputs, after: Shape) -> list[Reach]:
    """The operands, broadcast to the result: what is written several times counts as often; one used twice is two."""
    if node.kwargs:
        raise NoBoundError(f"no bound is known for {_name(node)}() with {', '.join(node.kwargs)}")
    by_name = dict(zip((used.name for used in node.all_input_nodes), inputs, strict=True))
    operands = [by_name[value.name] for value in node.args if isinstance(value, fx.Node)]
    return [reach.kept(sqrt(ratio(shape, after))) for reach, shape in operands]


def _sum(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    operands = _spread(node, inputs, after)
    return operands[0].plus(operands[1]) if len(operands) > 1 else Reach(operands[0].factor)


def _product(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    operands = _spread(node, inputs, after)
    if len(operands) > 1:
        return operands[0].product(operands[1], "the network")
    scale = next(abs(float(value)) for value in node.args if isinstance(value, (int, float)))
    size = operands[0].size
    return operands[0].times(scale, None if size is None else size * scale)


def _quotient(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    divisor = node.args[1]
    if not isinstance(divisor, (int, float)):
        raise NoBoundError("the network divides by a value that may be zero")
    return _spread(node, inputs, after)[0].times(1.0 / abs(float(divisor)))


def _mean(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    return inputs[0][0].kept(1.0 / sqrt(ratio(inputs[0][1], after)))


def _total(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    return inputs[0][0].times(sqrt(ratio(inputs[0][1], after)))


def _joined(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    total = inputs[0][0]
    for reach, _ in inputs[1:]:
        total = total.beside(reach)
    return total


def _repeated(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    return inputs[0][0].kept(sqrt(ratio(inputs[0][1], after)))


def _taken(node: fx.Node, inputs: Inputs, after: Shape) -> Reach:
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    if not all(part is None or part is ... or isinstance(part, (int, slice)) for part in index):
        raise NoBoundError("the network picks entries by an index that may repeat them")
    return inputs[0][0].kept()


_PARTS = ("chunk", "split", "unbind")
_FUNCTIONS: Mapping[str, Callable[[fx.Node, Inputs, Shape], Reach]] = {
    **dict.fromkeys(("flatten", "view", "reshape", "permute", "transpose", "movedim", "contiguous"), _reshaped),
    **dict.fromkeys(("squeeze", "unsqueeze", "clone", "float", "double", "narrow", "select", "neg", "abs"), _reshaped),
    **dict.fromkeys(("amax", "amin"), _reshaped),
    **dict.fromkeys(("add", "iadd", "add_", "sub", "isub", "sub_"), _sum),
    **dict.fromkeys(("mul", "imul", "mul_"), _product),
    **dict.fromkeys(("truediv", "itruediv", "div", "div_"), _quotient),
    **dict.fromkeys(("cat", "concat", "stack"), _joined),
    **dict.fromkeys(("expand", "repeat", "expand_as"), _repeated),
    "mean": _mean,
    "sum": _total,
    "getitem": _taken,
}


def _fed(cut: TracedCut) -> set[str]:
    """Name the nodes that depend on the network's input."""
    fed: set[str] = set()
    for node in cut.graph.nodes:
        if node.op == "placeholder" or any(used.name in fed for used in node.all_input_nodes):
            fed.add(node.name)
    return fed


@dataclass
class _Recorded:
    """What a run of a traced graph was like.

    Args:
        shapes: Shapes of floating-point tensors by node.
        constants: Values of the floating-point tensors that do not depend on the state, where asked for.
        plain: Nodes whose values hold no tensors.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    constants: dict[str, Tensor] = field(default_factory=dict)
    plain: set[str] = field(default_factory=set)


def _run(cut: TracedCut, call: Call, keep: bool) -> _Recorded:
    """Run the whole traced graph on a batch, without gradients, and note what its nodes give."""
    recorded = _Recorded()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                recorded.shapes[n.name] = tuple(value.shape)
                if keep and cut.levels[n] < cut.start:
                    recorded.constants[n.name] = value.clone()  # a later node may write into it
            elif not tensors_in(value):
                recorded.plain.add(n.name)
            return value

    inputs = [node for node in cut.graph.nodes if node.op == "placeholder"]
    rest = inputs[len(call.args) :]
    defaults = [call.kwargs.get(str(node.target), node.args[0] if node.args else None) for node in rest]
    with torch.no_grad():
        Recorder(fx.GraphModule(cut.backbone, cut.graph)).run(*call.args, *defaults)
    return recorded
