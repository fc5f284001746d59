"""FGSM and PGD: one signed gradient step, or many small ones."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcbl.lab.measures.attack.threat import Attacked, Objective, project


def fgsm(net: Attacked, x: Tensor, y: Tensor, objective: Objective, eps: float) -> Tensor:
    """Take one step of length eps along the gradient's sign (Goodfellow et al. 2015, arXiv 1412.6572).

    Args:
        net: The network.
        x: Pixels in [0, 1], (B, C, H, W).
        y: Labels (B,).
        objective: What to maximise.
        eps: Radius of the L_inf ball, in [0, 1].

    Returns:
        Pixels in the ball and in [0, 1], (B, C, H, W).
    """
    return project(x + eps * net.gradient(x, y, objective)[1].sign(), x, eps)


def pgd(
    net: Attacked,
    x: Tensor,
    y: Tensor,
    objective: Objective,
    eps: float,
    starts: Tensor,
    steps: int = 10,
    step_size: float | None = None,
) -> Tensor:
    """Climb by signed gradients from random points of the ball (Madry et al. 2018, arXiv 1706.06083).

    Args:
        net: The network.
        x: Pixels in [0, 1], (B, C, H, W).
        y: Labels (B,).
        objective: What to maximise.
        eps: Radius of the L_inf ball, in [0, 1].
        starts: Where each restart begins, in units of eps from x, (R, B, C, H, W) in [-1, 1].
        steps: Gradients of each restart.
        step_size: Length of a step; None for 2.5 eps / steps.

    Returns:
        Of all points that were met, x itself included, the one with the highest objective, (B, C, H, W).
    """
    length = 2.5 * eps / steps if step_size is None else step_size
    best, highest = x.clone(), objective(net.logits(x, y), y)
    for start in starts:
        z = project(x + eps * start, x, eps)
        for _ in range(steps):
            value, slope, _ = net.gradient(z, y, objective)
            best, highest = _better(best, highest, z, value)
            z = project(z + length * slope.sign(), x, eps)
        best, highest = _better(best, highest, z, objective(net.logits(z, y), y))
    return best


def _better(best: Tensor, highest: Tensor, z: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    higher = value > highest
    return torch.where(higher[:, None, None, None], z, best), torch.where(higher, value, highest)
