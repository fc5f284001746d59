"""What a model costs: parameters and FLOPs."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import torchcbl as cbl


def count_parameters(model: nn.Module, backbone: nn.Module) -> dict[str, int]:
    """Count scalars: those of the backbone, and those that feedback adds."""
    own = sum(parameter.numel() for parameter in backbone.parameters())
    return {"backbone": own, "added": sum(parameter.numel() for parameter in model.parameters()) - own}


def count_flops(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Count FLOPs per sample (a multiply-add is two): of step 0, of one more step, of the whole answer.

    Args:
        model: A plain network or a `ContextLoop`; it is called in eval mode.
        example: Images (B, C, H, W).
    """
    if not isinstance(model, cbl.ContextLoop):
        first = _flops(model, example, None)
        return {"first": first, "step": 0.0, "inference": first}
    first = _flops(model, example, 0)
    step = _flops(model, example, 1) - first
    return {"first": first, "step": step, "inference": _flops(model, example, model.config.steps)}


def _flops(model: nn.Module, example: Tensor, steps: int | None) -> float:
    mode = model.training
    model.eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        if isinstance(model, cbl.ContextLoop):
            model.refine(example, steps=steps)
        else:
            model(example)
    model.train(mode)
    return float(counter.get_total_flops()) / len(example)
