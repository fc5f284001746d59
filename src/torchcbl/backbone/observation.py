"""Watching a backbone run: which submodules finish when, with what, and how."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.channels import channels_of, makes_channels
from torchcbl.backbone.layout import Layout


@dataclass
class Observation:
    """What a submodule did in one forward pass."""

    calls: int = 0
    output: object = None
    order: int = -1
    leaves: Sequence[nn.Module] = ()  # all modules of the run whose kind tells a channel axis, in order
    num_leaves: int = 0  # how many of them had finished by then
    had_gradients: bool = True


def observe(backbone: nn.Module, names: Sequence[str], call: Call) -> dict[str, Observation]:
    """Run the backbone once in eval mode and note when and with what each submodule finished, and if under no_grad."""
    seen = {name: Observation() for name in names}
    clock = 0
    leaves: list[nn.Module] = []

    def note(name: str) -> object:
        def hook(module: nn.Module, _: object, output: object) -> None:
            nonlocal clock
            if makes_channels(module):
                leaves.append(module)
            if name in seen:
                observed = seen[name]
                observed.calls += 1
                observed.output, observed.order = output, clock
                observed.leaves, observed.num_leaves = leaves, len(leaves)
                observed.had_gradients = torch.is_grad_enabled()
            clock += 1

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in backbone.named_modules(remove_duplicate=False)
        if name and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(backbone), eagerly(), Unfused():
            call.run(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def channel_follows(backbone: nn.Module, name: str, layout: Layout, call: Call, leaf: nn.Module, axis: int) -> bool:
    """Say whether index 0 of an axis of the site's h is made from channel 0 of the leaf's output alone."""
    made: list[Tensor] = []
    hidden: list[Tensor] = []

    def begin(_: nn.Module, __: object, output: object) -> object:
        value = output[0] if isinstance(output, tuple) else output
        if not isinstance(value, Tensor):
            return output
        made[:] = [value.detach().requires_grad_()]
        fed = made[0] * 1  # which may be written in place
        return (fed, *output[1:]) if isinstance(output, tuple) else fed

    handles = [
        leaf.register_forward_hook(begin),
        backbone.get_submodule(name).register_forward_hook(lambda _, __, output: hidden.append(layout.read(output))),
    ]
    try:
        with torch.inference_mode(False), torch.enable_grad(), evaluating(backbone), eagerly(), Unfused():
            call.detached().run(backbone)
    finally:
        for handle in handles:
            handle.remove()
    if not hidden or not made or not hidden[-1].requires_grad:
        return False
    (grad,) = torch.autograd.grad(hidden[-1].select(axis, 0).sum(), made[0], allow_unused=True)
    if grad is None or not bool(grad.any()):
        return False
    channel = channels_of(leaf, grad.ndim)
    return not bool(grad.narrow(channel, 1, grad.shape[channel] - 1).any())


@contextlib.contextmanager
def eagerly() -> Iterator[None]:
    """Run what is compiled eagerly, so that nothing is compiled just to be looked at."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


class Unfused(TorchFunctionMode):
    """Switch off torch's fused inference paths (of `nn.TransformerEncoder`), as any mode that sees functions does.

    They compute what a submodule returns elsewhere, or return nested tensors, which have no shape.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        return func(*args, **(kwargs or {}))
