"""Following a backbone with torch.fx, and saying why when that cannot be trusted."""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import fx, nn

from torchcbl.backbone.calls import in_mode
from torchcbl.stages.base import has_hooks
from torchcbl.stages.checkpointing import within_checkpoint
from torchcbl.stages.noise import generators_kept
from torchcbl.step_norm import can_hold, is_dropout

Traced = tuple[fx.Graph, dict[str, fx.Node]]
"""A backbone's graph, and the node that is each named submodule's output."""

Held = dict[int, tuple[object, "dict[object, object] | list[object]"]]
"""Containers by identity, and what they held."""

_CONTAINERS = (dict, list, set, tuple, deque)
_lock = threading.Lock()


class NotTraceable(Exception):  # noqa: N818  (a finding that leads to the other cut, not a user's error)
    """The backbone cannot be traced faithfully; the message says why."""


class SiteTracer(fx.Tracer):
    """A tracer that notes which node is the output of each submodule, also of those it looks into.

    Raises:
        NotTraceable: A node comes from a checkpointed region, of which nothing would be left in the graph.
    """

    proxy_buffer_attributes = True  # else a buffer that is read as a number, or written, leaves no node

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, object] = {}

    def call_module(self, m: nn.Module, forward: object, args: object, kwargs: object) -> object:
        """Trace a submodule and note its output by its dotted name."""
        output = super().call_module(m, forward, args, kwargs)  # type: ignore[arg-type]
        self.outputs[self.path_of_module(m)] = output
        return output

    def create_node(self, *args: object, **kwargs: object) -> fx.Node:
        """Add a node to the graph."""
        if within_checkpoint():
            raise NotTraceable("its forward uses torch.utils.checkpoint")
        return super().create_node(*args, **kwargs)  # type: ignore[arg-type]


def trace(backbone: nn.Module, pattern: tuple[int, tuple[str, ...]], names: Sequence[str]) -> Traced:
    """Trace the backbone as it is called with so many positional and these keyword arguments, all of them tensors.

    Returns:
        The graph, and the node that is each named submodule's output.

    Raises:
        NotTraceable: torch.fx cannot follow the model, or what it saw may differ from what the model does: other code
            in train and eval mode, numbers drawn or tensors made inside, values kept in attributes, hooks, noise that
            cannot be held as a dropout's mask is, a checkpointed region, or a compiled part.
    """
    _check_modules(backbone)
    arguments = _check_arguments(backbone, pattern)
    # torch.fx patches nn.Module while it traces
    with _lock, buffers_kept(backbone), generators_kept(backbone) as states:
        graphs = {mode: _trace_in_mode(backbone, arguments, mode) for mode in (True, False)}
        draws = states.moved()
    if draws:  # once, while it was traced, as a coin that drops a block: no node would toss it again
        raise NotTraceable("its forward draws random numbers")
    training, evaluation = (_listing(graph) for graph, _, _ in graphs.values())
    if training != evaluation:
        raise NotTraceable("its forward does other things in train mode than in eval mode")
    graph, outputs, _ = graphs[False]
    _check_graph(graph, backbone)
    if any(kept for _, _, kept in graphs.values()):
        raise NotTraceable("its forward keeps values in attributes")
    nodes: dict[str, fx.Node] = {}
    for name in names:
        proxy = outputs.get(name)
        if not isinstance(proxy, fx.Proxy):
            raise NotTraceable(f"'{name}' does not show up as one tensor in the traced graph")
        nodes[name] = proxy.node
    return graph, nodes


@contextlib.contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Give every buffer its tensor and value back: tracing runs what writes into them, as batch norms that count."""
    before = [
        (owner, name, buffer, buffer.detach().clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        for owner, name, buffer, value in before:
            owner._buffers[name] = buffer
            if not torch.equal(buffer, value):  # versions do not tell: batch norm writes past them
                buffer.data.copy_(value)  # as this does: a graph may have saved the buffer


def _check_modules(backbone: nn.Module) -> None:
    for name, module in backbone.named_modules():
        if has_hooks(module):
            raise NotTraceable(f"'{name}' has hooks")
        if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
            raise NotTraceable(f"'{name}' is compiled or scripted")
        if is_dropout(module) and not can_hold(module):
            raise NotTraceable(f"the mask of '{name}' cannot be held as a factor")
        if _drops_inside(module):
            raise NotTraceable(f"'{name}' drops out inside, where no mask can be held")
        if _draws(module):
            raise NotTraceable(f"'{name}' draws random numbers that cannot be held")


def _draws(module: nn.Module) -> bool:
    """Say whether a module of torch's that tracing does not look into draws random numbers, other than a dropout."""
    if isinstance(module, (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)):
        return module._random_samples is None
    return isinstance(module, nn.RReLU)


def _drops_inside(module: nn.Module) -> bool:
    """Say whether a module of torch's that tracing does not look into (attention, LSTM) has dropout of its own."""
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    if not type(module).__module__.startswith("torch.nn") or isinstance(module, containers) or is_dropout(module):
        return False
    own = getattr(module, "dropout", 0.0)
    return (isinstance(own, float) and own > 0) or any(
        is_dropout(part) and getattr(part, "p", 1.0) > 0 for part in module.modules()
    )


def _check_arguments(backbone: nn.Module, pattern: tuple[int, tuple[str, ...]]) -> dict[str, object]:
    """Return the arguments that are left at their defaults."""
    parameters = inspect.signature(backbone.forward).parameters
    kinds = {parameter.kind for parameter in parameters.values()}
    if kinds & {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}:
        raise NotTraceable("its forward takes *args or **kwargs")
    given = {*list(parameters)[: pattern[0]], *pattern[1]}
    return {name: parameter.default for name, parameter in parameters.items() if name not in given}


def _trace_in_mode(
    backbone: nn.Module, defaults: dict[str, object], training: bool
) -> tuple[fx.Graph, dict[str, object], bool]:
    """Return the graph, the submodules' outputs, and whether the forward set attributes."""
    tracer = SiteTracer()
    held: Held = {}
    with in_mode(training, backbone):
        try:
            _hold([vars(module) for module in backbone.modules()], held)
            graph = tracer.trace(backbone, concrete_args=defaults or None)
        except NotTraceable:
            raise
        except Exception as error:  # tracing runs the user's forward on proxies: anything can come out of it
            raise NotTraceable(f"torch.fx: {str(error).strip().splitlines()[0] if str(error) else error!r}") from error
        finally:
            changed = _restore(held)  # also what torch.fx leaves: proxies, and on the backbone the constants it meets
    return graph, tracer.outputs, changed


def _hold(value: object, held: Held) -> None:
    """Note what a container holds, and those within it."""
    if not isinstance(value, _CONTAINERS) or id(value) in held:
        return
    held[id(value)] = value, dict(value) if isinstance(value, dict) else list(value)
    for entry in value.values() if isinstance(value, dict) else value:
        _hold(entry, held)


def _restore(held: Held) -> bool:
    """Give containers back what they held, and say whether anything had changed."""
    changed = [(value, before) for value, before in held.values() if not _unchanged(value, before)]
    for value, before in changed:
        if isinstance(value, dict) and isinstance(before, dict):
            for key in value.keys() - before.keys():
                del value[key]
            value.update(before)
        elif isinstance(value, (list, deque)):
            value.clear()
            value.extend(before)
        elif isinstance(value, set):
            value.clear()
            value.update(before)
    return bool(changed)


def _unchanged(value: object, before: object) -> bool:
    """Say whether a container holds the same objects, or numbers and strings that are equal."""
    if value is before:
        return True
    if isinstance(value, dict) and isinstance(before, dict):
        return value.keys() == before.keys() and all(_unchanged(value[key], before[key]) for key in before)
    if isinstance(value, _CONTAINERS) and isinstance(before, _CONTAINERS):
        return len(value) == len(before) and all(map(_unchanged, value, before))
    return isinstance(value, (bool, int, float, str)) and type(value) is type(before) and value == before


def _listing(graph: fx.Graph) -> list[tuple[str, str, str, str]]:
    return [(node.op, str(node.target), str(node.args), str(node.kwargs)) for node in graph.nodes]


def _check_graph(graph: fx.Graph, backbone: nn.Module) -> None:
    known = {name for name, _ in backbone.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in backbone.named_buffers(remove_duplicate=False)}
    for node in graph.nodes:
        if node.op == "get_attr" and node.target not in known:
            raise NotTraceable("its forward makes tensors of its own")
        if node.op == "call_function" and "dropout" in getattr(node.target, "__name__", ""):
            raise NotTraceable("its forward calls a dropout function")
        if node.op == "output" and not _is_plain(node.args[0]):
            raise NotTraceable("its output is of a type of its own")


def _is_plain(returned: object) -> bool:
    """Say whether an output is a tensor, or tensors in plain tuples, lists and dicts."""
    if isinstance(returned, (tuple, list)):
        return not hasattr(returned, "_fields") and all(map(_is_plain, returned))
    if isinstance(returned, dict):
        return all(map(_is_plain, returned.values()))
    return isinstance(returned, fx.Node) or returned is None
