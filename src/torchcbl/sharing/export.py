"""Exporting a loop at its fixed T: to `torch.export`, and through it to ONNX."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchcbl.assembly import made_up
from torchcbl.backbone.calls import Call, Example, evaluating
from torchcbl.files import write_atomically
from torchcbl.stages.base import tensors_in

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


def export_program(
    net: ContextLoop, example: Example | None = None, *, dynamic_batch: bool = True
) -> torch.export.ExportedProgram:
    """Export a loop in eval mode, its T steps unrolled, with `torch.export` (non-strict).

    Args:
        net: The loop; it is exported as it is in eval mode and keeps its own.
        example: A batch of the form it will be called with; None makes one of the form the loop was built with.
        dynamic_batch: Whether the number of samples stays open; all other sizes are those of the example.

    Returns:
        A program whose `.module()` is called as the loop is.

    Raises:
        ValueError: The backbone cannot be exported like this; the message names the module where it fails. Or the loop
            stops by a rule, or is solved otherwise than step by step.

    Example:
        >>> from torchcbl import ContextLoop
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = ContextLoop(backbone, sites="1", example=torch.zeros(2, 4)).eval()
        >>> program = export_program(net)
        >>> x = torch.randn(7, 4)
        >>> torch.equal(program.module()(x), net(x))
        True
    """
    _check_unrolls(net)
    call = _call(net, example)
    named = _with_named_arguments(net, call)
    watch = _Watch(net)
    try:
        with evaluating(net), watch.watching(), torch.no_grad():
            shapes = _dynamic_shapes(named, call) if dynamic_batch else None
            return torch.export.export(named, call.args, call.kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:  # what torch.export raises is of many kinds, few of them public
        if watch.culprit is None and not dynamic_batch and not isinstance(error, (RuntimeError, ValueError)):
            raise
        raise ValueError(_explain(net, watch.culprit, dynamic_batch, error)) from error


def export_onnx(
    net: ContextLoop, path: str | PathLike[str], example: Example | None = None, *, dynamic_batch: bool = True
) -> Path:
    """Write a loop in eval mode, its T steps unrolled, as an ONNX file.

    Args:
        net: The loop.
        path: The file to write; its weights are in it.
        example: A batch of the form it will be called with; None makes one of the form the loop was built with.
        dynamic_batch: Whether the number of samples stays open.

    Returns:
        The path.

    Raises:
        ImportError: onnx or onnxscript is not installed.
        ValueError: The backbone cannot be exported like this; the message names the module where it fails. Or the loop
            stops by a rule, or is solved otherwise than step by step.
    """
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "writing ONNX needs onnx and onnxscript, which are not installed: pip install 'torchcbl[onnx]'."
        ) from error
    program = export_program(net, example, dynamic_batch=dynamic_batch)
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress whatever verbose says
        written = torch.onnx.export(program, dynamo=True, verbose=False)
    assert written is not None
    target = Path(path)
    write_atomically(target, written.model_proto.SerializeToString())
    return target


def _check_unrolls(net: ContextLoop) -> None:
    if not net.config.settings.takes_every_step:
        raise ValueError(
            f"a loop with {net.config.settings.describe()} takes as many steps as the data wants, and an export has a "
            "fixed number: load it for export with cbl.load(folder, backbone, solver='picard', halting=Never()) from "
            "torchcbl.halting, which takes all T steps."
        )


def _call(net: ContextLoop, example: Example | None) -> Call:
    given = made_up(net.config.example, net.backbone) if example is None else Call.from_example(example)
    return given.resized() if given.batch_size() == 1 else given.detached()  # torch.export takes a size of 1 as fixed


def _with_named_arguments(net: ContextLoop, call: Call) -> nn.Module:
    """The same loop with the backbone's names for its arguments, by which torch.export knows what is dynamic."""
    parameters = inspect.signature(net.backbone.forward).parameters.values()
    positional = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [positional[i] if i < len(positional) else f"argument_{i}" for i in range(len(call.args))]

    def forward(self: ContextLoop, *args: object, **kwargs: object) -> object:
        return type(net).forward(self, *args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    arguments = [inspect.Parameter(name, kind) for name in ("self", *names, *call.kwargs)]
    forward.__signature__ = inspect.Signature(arguments)  # type: ignore[attr-defined]
    named = copy.copy(net)
    named.__class__ = type(type(net).__name__, (type(net),), {"forward": forward})
    return named


def _dynamic_shapes(named: nn.Module, call: Call) -> dict[str, object]:
    batch, size = torch.export.Dim.DYNAMIC, call.batch_size()
    names = inspect.signature(named.forward).parameters
    return {
        name: {0: batch} if isinstance(value, Tensor) and value.ndim and value.shape[0] == size else None
        for name, value in zip(names, call.values(), strict=True)
    }


class _Watch:
    """Notes in which module an export fails, or fixes the number of samples."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        self.culprit: str | None = None
        self._inside = [""]

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Put hooks on all modules meanwhile."""
        handles = []
        for name, module in self.net.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):
                handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after(name)))
        try:
            yield
        except BaseException:
            self.culprit = self.culprit or self._inside[-1] or None
            raise
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, kwargs: object) -> None:
            if self.culprit is None and _is_fixed((args, kwargs)):
                self.culprit = self._inside[-1]
            self._inside.append(name)

        return hook

    def _after(self, name: str):  # type: ignore[no-untyped-def]
        def hook(module: nn.Module, args: object, output: object) -> None:
            self._inside.pop()
            if self.culprit is None and _is_fixed((args, output)):
                self.culprit = name

        return hook


def _is_fixed(values: object) -> bool:
    """Say whether a size that began as open has come to be one number."""
    nodes = [getattr(size, "node", None) for tensor in tensors_in(values) for size in tensor.shape]
    return any(node is not None and node.maybe_as_int() is not None for node in nodes)


def _explain(net: ContextLoop, culprit: str | None, dynamic_batch: bool, error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[0][:300] if lines else type(error).__name__
    where = f" because of '{culprit}'" if culprit else ""
    way = (
        "take the number of samples from x.shape[0] there instead of fixing it or deciding by it, or pass "
        "dynamic_batch=False and an example of the batch size you will use"
        if dynamic_batch
        else "take what depends on the values of tensors (if, .item(), tolist) out of it"
    )
    return f"{type(net.backbone).__name__} cannot be exported{where}: {reason} To go on, {way}."
