"""What lies below a site, and how often it is computed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

import torchcbl as cbl
from subject import Batch
from torchcbl.backbone.calls import Call
from torchcbl.backbone.observation import Unfused


def flops(net: cbl.ContextLoop, batch: Batch, steps: int) -> int:
    """Count the FLOPs of a call, for the whole batch; what torch fuses on a CPU it does not count, so nothing is."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            net.run(Call((), dict(batch)), steps)  # refine computes the context of y_T too, to say how far it moved
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return int(counter.get_total_flops())


def parameters_below(backbone: nn.Module, site: str, batch: Batch) -> list[str]:
    """Name the parameters of the modules that finished for good before the site was done."""
    finished: list[nn.Module] = []
    for module in backbone.modules():
        module.register_forward_hook(lambda module, *_: finished.append(module))
    with torch.no_grad():
        backbone(**batch)
    end = finished.index(backbone.get_submodule(site)) + 1
    above = {id(p) for module in backbone.modules() if module not in finished[:end] or module in finished[end:]
             for p in module.parameters(recurse=False)}  # fmt: skip
    return [name for name, p in backbone.named_parameters() if id(p) not in above]


class Reads(TorchDispatchMode):
    """Count the operations that read given tensors, whichever way they were called."""

    def __init__(self, tensors: Collection[Tensor]) -> None:
        super().__init__()
        self.storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.count += any(leaf.untyped_storage().data_ptr() in self.storages for leaf in leaves)
        return func(*args, **(kwargs or {}))


def reads(net: cbl.ContextLoop, batch: Batch, steps: int, names: Collection[str]) -> int:
    """Count the operations that read parameters of these names in a call of so many steps."""
    counter = Reads([net.backbone.get_parameter(name) for name in names])
    with torch.no_grad(), Unfused(), counter:
        net.refine(**batch, steps=steps)
    return counter.count
