"""Causal networks: finding that position i of the output sees no later one, and keeping it so under feedback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.layout import Layout
from torchcbl.backbone.observation import eagerly
from torchcbl.backbone.site import Site
from torchcbl.schedules import Psi

Run = Callable[[Sequence[Psi]], Tensor]
"""Runs the loop with the given adapters and returns y_T."""


def is_causal(backbone: nn.Module, call: Call, layout: Layout, output: Tensor) -> bool:
    """Say whether y (B, N, K) at a position depends on the input there and at earlier positions alone.

    Found by trying: the input is changed from some position on, and the output before it must not move.
    """
    values = [*enumerate(call.args), *call.kwargs.items()]
    sequences = [
        key
        for key, value in values
        if isinstance(value, Tensor)
        and value.ndim >= 2
        and value.shape[:2] == output.shape[:2]
        and "mask" not in str(key)
    ]
    if output.ndim != 3 or output.shape[1] < 2 or not sequences:
        return False

    def changed(begin: int) -> Call:
        copies = call.detached()
        args = tuple(_change(v, begin) if i == sequences[0] else v for i, v in enumerate(copies.args))
        return Call(args, {k: _change(v, begin) if k == sequences[0] else v for k, v in copies.kwargs.items()})

    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly():
        return all(
            _unmoved(layout.read(changed(begin).run(backbone))[:, :begin], output[:, :begin])
            for begin in _beginnings(output)
        )


def has_positions_of(site: Site, output: Tensor) -> bool:
    """Say whether h at a site runs over the output's positions."""
    return _position_axis(site, output) is not None


def check_causal(sites: Sequence[Site], psi: Sequence[Psi], run: Run) -> None:
    """Refuse a loop around a causal network in which an adapter or the context shows a position what comes later.

    Args:
        sites: The sites.
        psi: Adapters that are not the identity, since that shows nothing.
        run: Runs the loop with the adapters it is given.

    Raises:
        ValueError: There is one; the message names its site.
    """
    calm = run(psi)
    for index, site in enumerate(sites):
        axis = _position_axis(site, calm) if site.causal else None
        for begin in _beginnings(calm) if axis is not None else ():
            assert axis is not None
            disturbed = list(psi)
            disturbed[index] = _then_disturb(psi[index], axis, begin)
            if not _unmoved(run(disturbed)[:, :begin], calm[:, :begin]):
                raise ValueError(
                    f"the backbone is causal at site '{site.name}', but with feedback its outputs before position "
                    f"{begin} "
                    "see what comes later: an adapter or the context map mixes positions, or the context is pooled "
                    "over "
                    "them. Leave out Context(per='sample'), and let an adapter use site.causal to mask what is later."
                )


def _change(value: object, begin: int) -> object:
    """Put other tokens, or noise, from position `begin` on."""
    assert isinstance(value, Tensor)
    if value.is_floating_point():
        return _disturb(value, 1, begin)
    other = torch.where(value == 0, 1, 0).to(value.dtype)  # which any vocabulary has
    return torch.cat([value[:, :begin], other[:, begin:]], dim=1)


def _then_disturb(adapter: Psi, axis: int, begin: int) -> Psi:
    return lambda h, z: _disturb(adapter(h, z), axis, begin)


def _disturb(h: Tensor, axis: int, begin: int) -> Tensor:
    noise = torch.randn(h.shape, generator=torch.Generator().manual_seed(0)).to(h)
    noise.narrow(axis, 0, begin).zero_()
    return h + noise


def _position_axis(site: Site, output: Tensor) -> int | None:
    """The axis of h that runs over the output's positions, if there is one."""
    if output.ndim != 3 or len(site.shape) != 3 or output.shape[1] < 2:
        return None
    axis = 3 - site.channel_dim
    return axis if site.shape[axis] == output.shape[1] else None


def _beginnings(output: Tensor) -> list[int]:
    last = output.shape[1] - 1
    return sorted({1, (last + 1) // 2, last})


def _unmoved(some: Tensor, others: Tensor) -> bool:
    scale = float(others.abs().max()) if others.numel() else 0.0
    return torch.allclose(some, others, rtol=0.0, atol=1e-5 * scale, equal_nan=True)
