"""What a model costs: parameters and FLOPs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchcbl.lab.refining import Refining


def count_parameters(model: nn.Module, backbone: nn.Module) -> dict[str, int]:
    """Count scalars: those of the backbone, and those that feedback adds."""
    own = sum(parameter.numel() for parameter in backbone.parameters())
    return {"backbone": own, "added": sum(parameter.numel() for parameter in model.parameters()) - own}


def count_flops(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Count FLOPs per sample (a multiply-add is two): of step 0, of one more step, of the whole answer.

    Args:
        model: A plain network, or one that refines: a `ContextLoop`, or what has its `refine`; called in eval mode.
        example: Images (B, C, H, W).
    """
    whole = _flops(model, example, None)
    if not isinstance(model, Refining):
        return {"first": whole, "step": 0.0, "inference": whole}
    first = _flops(model, example, 0)
    return {"first": first, "step": _flops(model, example, 1) - first, "inference": whole}


def count_training_flops(loss: Callable[[Tensor, Tensor], Tensor], example: Tensor, num_classes: int) -> float:
    """Count the FLOPs per sample of a loss and its gradients, as far as torch counts them: convolutions and products.

    Args:
        loss: Called with samples (B, C, H, W) and classes (B,).
        example: Samples.
        num_classes: K.
    """
    target = torch.arange(len(example)) % num_classes
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        torch.autograd.backward(loss(example, target))
    return float(counter.get_total_flops()) / len(example)


def _flops(model: nn.Module, example: Tensor, steps: int | None) -> float:
    mode = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(model, Refining):
            model.refine(example, steps=steps)
        else:
            model(example)
    model.train(mode)
    return float(counter.get_total_flops()) / len(example)
