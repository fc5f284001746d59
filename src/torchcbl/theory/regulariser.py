"""A penalty on the Jacobian of the loop, for training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchcbl.arguments import check_loop
from torchcbl.backbone.calls import Call
from torchcbl.backbone.language import without_cache
from torchcbl.checks import check_count
from torchcbl.gradients.base import without_gradients
from torchcbl.halting import Never
from torchcbl.solvers import Picard, iterate
from torchcbl.solvers.jacobian import linearising
from torchcbl.stages.tracing import buffers_kept

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop


def jacobian_penalty(
    net: ContextLoop,
    *args: object,
    probes: int = 1,
    generator: torch.Generator | None = None,
    **kwargs: object,
) -> Tensor:
    """Estimate ||dG/ds||_F^2 / N where T - 1 plain steps lead, whatever solver the loop has, to be added to a loss.

        L = loss + weight * E_v ||v^T dG/ds||^2 / N,    v ~ N(0, I)             (mean over the batch)

    It keeps loops convergent while they train, without a hard bound: each eigenvalue is at most the Frobenius norm. For
    a bound that holds by construction there is `make_contractive`.

    Args:
        net: The loop, in train or eval mode as it is. Batch norm statistics stay as they are; noise is drawn anew.
        *args: What it is called with.
        probes: Random directions v, at least 1: unbiased for any number, with less variance for more.
        generator: Where they are drawn from; None for torch's own.
        **kwargs: What the loop is called with by keyword.

    Returns:
        The penalty, a scalar with gradients to all that the last step used (none under `torch.no_grad` and
        `torch.inference_mode`). Besides y_0 it costs T - 1 evaluations without gradients, one with, and a double
        backward pass for each probe.

    Raises:
        ValueError: `probes` is below 1.
        TypeError: It is no whole number, or `net` is no loop.

    Source:
        Bai, Koltun and Kolter 2021, Stabilizing Equilibrium Models by Jacobian Regularization, arXiv 2106.14342;
        Hutchinson 1989.

    Example:
        >>> from torch import nn
        >>> from torchcbl import ContextLoop
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(5, 4)
        >>> net = ContextLoop(backbone, "1", x)
        >>> jacobian_penalty(net, x).item()  # an identity start feeds nothing back
        0.0
    """
    check_loop("jacobian_penalty", net)
    check_count("jacobian_penalty", "probes", probes)
    call = without_cache(net.backbone, Call(args, kwargs))
    steps = max(1, net.config.steps)
    wanted = torch.is_grad_enabled()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        buffers_kept(net),
        sdpa_kernel(SDPBackend.MATH),
        linearising(),
        net.mapped(call if wanted else call.detached()) as g,  # autograd saves no tensor of inference mode
    ):  # fused attention has no double backward
        start = g.prepare()
        with without_gradients():
            run = iterate(g, start, g.output, Picard(), Never(), steps - 1, compact=False, keep_outputs=False)
        s = run.value.detach().requires_grad_()
        value = g(s, steps).value
        total = value.new_zeros(())
        for _ in range(probes):
            v = torch.randn(value.shape, generator=generator, dtype=value.dtype, device=value.device)
            (pulled,) = torch.autograd.grad(value, s, v, create_graph=True, allow_unused=True)
            if pulled is not None:
                total = total + pulled.square().sum()
        penalty = total / (probes * max(1, value.numel()))
        return penalty if wanted else penalty.detach()
