"""What a traced network does on one batch: shapes, values, what is written in place, whether samples keep apart."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from torchcbl.backbone.calls import Call
from torchcbl.stages.base import tensors_in
from torchcbl.stages.traced import TracedCut
from torchcbl.theory.layers import Shape
from torchcbl.theory.reach import NoBoundError


@dataclass
class Recorded:
    """What a run of a traced graph was like.

    Args:
        shapes: Shapes of tensors by node.
        floating: Nodes that are floating-point tensors.
        rows: Nodes that have one row for each sample.
        constants: Values of the tensors that do not depend on the state, where asked for.
        plain: Values that hold no tensors, by node.
        written: By node, the earlier nodes whose values it wrote over, and whether each is now just what it returned.
    """

    shapes: dict[str, Shape] = field(default_factory=dict)
    floating: set[str] = field(default_factory=set)
    rows: set[str] = field(default_factory=set)
    constants: dict[str, Tensor] = field(default_factory=dict)
    plain: dict[str, object] = field(default_factory=dict)
    written: dict[str, list[tuple[str, bool]]] = field(default_factory=dict)


class _Recorder(fx.Interpreter):
    def __init__(self, cut: TracedCut, source: str, keep_constants: bool) -> None:
        super().__init__(fx.GraphModule(cut.backbone, cut.graph))
        self.cut, self.source, self.keep_constants = cut, source, keep_constants
        self.recorded, self.result = Recorded(), torch.empty(0)
        self._versions: dict[str, list[int]] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.recorded.shapes[n.name] = tuple(value.shape)
            if value.is_floating_point():
                self.recorded.floating.add(n.name)
            if self.keep_constants and self.cut.levels[n] < self.cut.start and not value.is_complex():
                self.recorded.constants[n.name] = value.clone()  # a later node may write into it
            if n.name == self.source:
                self.result = value.clone()
        elif not tensors_in(value):
            self.recorded.plain[n.name] = value
        self._note_writes(n, value)
        return value

    def _note_writes(self, n: fx.Node, value: object) -> None:
        """Look, by torch's version counters, which of the values that are still needed have changed."""
        for node, earlier in self.env.items():
            versions = [tensor._version for tensor in tensors_in(earlier)]
            if versions != self._versions[node.name]:
                self._versions[node.name] = versions
                self.recorded.written.setdefault(n.name, []).append((node.name, _is_same(earlier, value)))
        self._versions[n.name] = [tensor._version for tensor in tensors_in(value)]


def record(cut: TracedCut, call: Call, source: str, keep_constants: bool) -> Recorded:
    """Run the whole traced graph on a batch, without gradients, and note what its nodes give.

    Args:
        cut: Whose graph.
        call: The batch.
        source: The node that the context is made from.
        keep_constants: Whether to keep the values that do not depend on the state.

    Raises:
        NoBoundError: What a sample gets depends on which others are in its batch.
    """
    others = call.resized()
    here, there = _run(cut, call, source, keep_constants), _run(cut, others, source, False)
    sizes = call.batch_size(), others.batch_size()
    for name, shape in here.recorded.shapes.items():
        resized = there.recorded.shapes.get(name, ())
        if shape and resized and (shape[0], resized[0]) == sizes:
            here.recorded.rows.add(name)
    a, b = (recorder.result[: min(sizes)].double() for recorder in (here, there))
    scale = float(a.nan_to_num(0.0, 0.0, 0.0).abs().amax()) if a.numel() else 0.0
    tolerance = scale * torch.finfo(here.result.dtype).eps ** (1 / 3)  # rounding depends on the size of the batch
    if a.shape != b.shape or not torch.allclose(a, b, rtol=0.0, atol=tolerance, equal_nan=True):
        raise NoBoundError("the network mixes the samples of a batch")
    return here.recorded


def _run(cut: TracedCut, call: Call, source: str, keep_constants: bool) -> _Recorder:
    recorder = _Recorder(cut, source, keep_constants)
    call = call.detached()  # the network may write into its input
    inputs = [node for node in cut.graph.nodes if node.op == "placeholder"]
    rest = inputs[len(call.args) :]
    defaults = [call.kwargs.get(str(node.target), node.args[0] if node.args else None) for node in rest]
    with torch.no_grad():
        recorder.run(*call.args, *defaults)
    return recorder


def _is_same(a: object, b: object) -> bool:
    """Say whether two values are one tensor, whole."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    return (a.data_ptr(), a.shape, a.stride(), a.dtype) == (b.data_ptr(), b.shape, b.stride(), b.dtype)
