"""A certified bound on gamma, from the norms of the layers that a step runs through."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, fx
from torch.nn.modules.batchnorm import _BatchNorm

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.masks import attention_mask
from torchcbl.solvers import Picard
from torchcbl.stages.traced import TracedCut, put_in
from torchcbl.step_norm import StepStatistics, module_key
from torchcbl.theory import adapters
from torchcbl.theory.functions import Operand, through_function
from torchcbl.theory.layers import Shape, through, through_batch_norm
from torchcbl.theory.reach import NoBoundError, Reach, known
from torchcbl.theory.recording import record

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
        solver = net.config.settings.solver
        if net.config.alpha > 0 and isinstance(solver, Picard) and solver.damping > 0:
            raise NoBoundError(
                "Picard(damping=...) with alpha > 0 damps twice, which is not Eq. 11's iteration: use one of the two"
            )
        cut = net.cut_for(call)
        if not isinstance(cut, TracedCut):
            reason = net.plan.reason or "it is called otherwise than in the example, or has hooks"
            raise NoBoundError(
                f"torch.fx does not show what the backbone computes ({reason}): only a traced cut can be bounded; "
                "torchcbl.theory.jacobian_penalty needs none"
            )
        self.net, self.cut, self.at_call = net, cut, at_call
        _check_own(net)
        self.masked = attention_mask(net.backbone, call) is not None
        self.site_of = {node: index for index, node in enumerate(self.cut.sites)}
        source = self.cut.source
        self.source = source.name if source is not None else self._output()
        with evaluating(net):
            self.recorded = record(self.cut, call, self.source, keep_constants=at_call)
        self.shapes = self.recorded.shapes
        for name in (*(node.name for node in self.site_of), self.source):
            if name not in self.recorded.rows:
                raise NoBoundError(f"'{name}' is not one tensor with the batch on its first axis: choose one that is")

    def _output(self) -> str:
        """The name of the node that is y."""
        layout = self.net.output_layout
        node: object = put_in(self.cut.returned, {node.name: node for node in self.cut.returned_nodes})
        for key in layout.path:
            node = node[key] if isinstance(node, (tuple, list, dict)) else None  # type: ignore[index]
        if not isinstance(node, fx.Node) or layout.packed or layout.batch_dim:
            raise NoBoundError("the output is not one tensor of the traced graph with the batch on its first axis")
        return node.name

    def bound(self) -> Tensor:
        """Return a bound on gamma, the Lipschitz constant of F, (B,) or (1,) float64.

        Raises:
            NoBoundError: A layer, an adapter or the context has none.
        """
        z_shape = self.made(Reach.unknown())[1]
        # a state that is z itself may be any vector, not only what the context makes of probabilities
        is_state = self.net.config.alpha == 0 and prod(z_shape[1:]) < prod(self.shapes[self.source][1:])
        size = None if is_state else adapters.simplex_size(self.net.context)
        one = Reach(known(1.0), size)

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
            known[node.name] = raw = self._held(node, known) if fixed else self._computed(node, known)
            for earlier, whole in self.recorded.written.get(node.name, ()):
                if whole:
                    known[earlier] = raw
                elif raw.moves or (earlier in known and known[earlier].moves):
                    known.pop(earlier, None)
            if node in self.site_of:
                known[node.name] = visit(self.site_of[node], raw, self.shapes[node.name])
        return self._of(self.source, known)

    def _of(self, name: str, known: Mapping[str, Reach]) -> Reach:
        """What is known of an earlier value, if it still is what it was."""
        if name not in known:
            raise NoBoundError(f"'{name}' is used again after a part of it was written over")
        return known[name]

    def _held(self, node: fx.Node, known: Mapping[str, Reach]) -> Reach:
        """What is known of a value below the sites."""
        if any(self._of(used.name, known).moves for used in node.all_input_nodes):
            raise NoBoundError(f"'{node.name}' reads a value that a site's state was written into")
        if self.at_call:
            value = self.recorded.constants.get(node.name)
            if value is None:
                return Reach.unknown()
            return Reach.constant(value, per_sample=value.ndim > 1 and node.name in self.recorded.rows)
        return self._computed(node, known)

    def _computed(self, node: fx.Node, known: Mapping[str, Reach]) -> Reach:
        """Bound what a node computes; what does not depend on the state needs no rule."""
        if node.op in ("placeholder", "get_attr"):
            return Reach.unknown()
        if any(self._of(used.name, known).moves for used in node.all_input_nodes):
            return self._moved(node, known)
        try:
            return self._moved(node, known)
        except NoBoundError:
            return Reach.unknown()

    def _moved(self, node: fx.Node, known: Mapping[str, Reach]) -> Reach:
        name = _name(node)
        if node.name in self.recorded.plain and name in _OF_FORM:
            return Reach.unknown()
        if node.name not in self.recorded.floating and name not in _SEVERAL:
            raise NoBoundError(f"'{name}' returns other things than one tensor of numbers: {_ABOVE}")

        def operand(used: fx.Node) -> object:
            if used.name in self.recorded.plain:
                return self.recorded.plain[used.name]
            return Operand(known[used.name], self.shapes.get(used.name))

        args = tuple(fx.map_arg(value, operand) for value in node.args)  # type: ignore[arg-type]
        kwargs = {key: fx.map_arg(value, operand) for key, value in node.kwargs.items()}  # type: ignore[arg-type]
        after = self.shapes.get(node.name, ())
        if node.op == "call_module":
            return self._module(name, args, kwargs, after)
        return through_function(name, after, args, kwargs)

    def _module(self, name: str, args: Sequence[object], kwargs: Mapping[str, object], after: Shape) -> Reach:
        module = self.cut.modules[name]
        if len(args) != 1 or kwargs or not isinstance(args[0], Operand) or args[0].shape is None:
            raise NoBoundError(f"'{name}' takes several arguments: {_ABOVE}")
        reach, before = args[0].reach, args[0].shape
        if isinstance(module, _BatchNorm):
            return through_batch_norm(module, reach, self._variance(name, module))
        try:
            return through(module, reach, before, after)
        except NoBoundError as error:
            raise NoBoundError(f"{error} ('{name}'): {_ABOVE}") from error

    def _variance(self, name: str, norm: _BatchNorm) -> Tensor | None:
        """The running variance that a batch norm divides by at step T."""
        statistics = self.net.step_norm.statistics
        if module_key(name) in statistics:
            kept = statistics[module_key(name)]
            assert isinstance(kept, StepStatistics)
            if int(kept.num_batches_tracked[-1]):
                return kept.running_var[-1]
        return norm.running_var


_OF_FORM = ("size", "dim", "numel", "ndimension", "getattr", "is_floating_point")
"""Questions about a tensor whose answers do not depend on its values."""


_ABOVE = "put the sites above it"
_SEVERAL = ("chunk", "split", "unbind")
"""Functions that return several parts of one tensor."""


def _check_own(net: ContextLoop) -> None:
    """Refuse adapters and contexts that do more than their classes say.

    Raises:
        NoBoundError: Some do.
    """
    for module in (*net.adapters.modules(), *net.context.modules()):
        if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
            raise NoBoundError(f"a {type(module).__name__} of the loop has hooks, or a forward of its own")


def _name(node: fx.Node) -> str:
    if node.op == "call_module" or isinstance(node.target, str):
        return str(node.target)
    name, home = getattr(node.target, "__name__", str(node.target)), getattr(node.target, "__module__", None)
    if str(home or "torch").split(".")[0] not in ("torch", "_operator", "builtins"):
        raise NoBoundError(f"no bound is known for {name}() of {home}")
    return str(name)
