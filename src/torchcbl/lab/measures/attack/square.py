"""Square attack: random search with squares, which looks at answers alone and needs no gradient."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from torchcbl.lab.measures.attack.threat import Attacked, margin, project

_HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries


def square(
    net: Attacked, x: Tensor, y: Tensor, aim: int, eps: float, draws: Tensor, stripes: Tensor, share: float = 0.8
) -> Tensor:
    """Try squares of +-eps at random places, and keep what lowers the label's margin at y_aim.

    Begins with vertical stripes of +-eps. The squares' area starts at `share` of the image and is halved after 10, 50,
    200, 1000, ... of 10,000 queries, scaled to the number at hand. Source: Andriushchenko et al. 2020, arXiv
    1912.00049.

    Args:
        net: The network.
        x: Pixels in [0, 1], (B, C, H, W).
        y: Labels (B,).
        aim: The step whose answer is to be wrong.
        eps: Radius of the L_inf ball, in [0, 1].
        draws: Uniform in [0, 1): places and signs of each query, (B, queries, 2 + C).
        stripes: Uniform in [0, 1): signs of the stripes, (B, C, W).
        share: Area of the first squares, in (0, 1].

    Returns:
        For each sample the first point met where y_aim is wrong, else the one with the least margin.
    """
    if not len(x):
        return x.clone()
    found = project(x + eps * _signs(stripes)[:, :, None, :].to(x), x, eps)
    least = margin(net.logits(found, y)[aim], y)
    queries = draws.shape[1]
    for query in range(queries):
        active = (least >= 0).nonzero()[:, 0]
        if not len(active):
            break
        side = _side(x.shape, share / 2 ** sum(10_000 * query / queries > halving for halving in _HALVINGS))
        tried = _with_squares(found[active], x[active], draws[active, query], side, eps)
        value = margin(net.logits(tried, y[active])[aim], y[active])
        better = value < least[active]
        found[active[better]], least[active[better]] = tried[better], value[better]
    return found


def _side(shape: torch.Size, share: float) -> int:
    _, _, height, width = shape
    return max(1, min(height, width, round(math.sqrt(share * height * width))))


def _with_squares(z: Tensor, x: Tensor, draws: Tensor, side: int, eps: float) -> Tensor:
    _, _, height, width = x.shape
    rows, columns = torch.arange(height), torch.arange(width)
    top = (draws[:, 0] * (height - side + 1)).long()[:, None]
    left = (draws[:, 1] * (width - side + 1)).long()[:, None]
    inside = ((rows >= top) & (rows < top + side))[:, None, :, None]
    inside = inside & ((columns >= left) & (columns < left + side))[:, None, None, :]
    filled = x + eps * _signs(draws[:, 2:])[:, :, None, None].to(x)
    return project(torch.where(inside, filled, z), x, eps)


def _signs(uniform: Tensor) -> Tensor:
    return torch.where(uniform < 0.5, -1.0, 1.0)
