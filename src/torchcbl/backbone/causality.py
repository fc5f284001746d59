"""Causal networks: finding that position i of the output sees no later one, and keeping it so under feedback."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.layout import Layout
from torchcbl.backbone.observation import eagerly
from torchcbl.backbone.probing import noise_like
from torchcbl.backbone.site import Site
from torchcbl.schedules import Psi

Run = Callable[[Call, Sequence[Psi]], Tensor]
"""Runs the loop on a call with the given adapters and returns y_T."""


def is_causal(backbone: nn.Module, call: Call, layout: Layout, output: Tensor) -> bool:
    """Say whether y (B, N, K) at a position depends on the input there and at earlier positions alone.

    Found by trying: the input is changed from some position on, and the output before it must not move.
    """
    changes = _changes(call, output)
    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly():
        return bool(changes) and all(
            _unmoved(layout.read(changed.run(backbone))[:, :begin], output[:, :begin]) for begin, changed in changes
        )


def has_positions_of(site: Site, output: Tensor) -> bool:
    """Say whether h at a site runs over the output's positions."""
    if output.ndim != 3 or len(site.shape) != 3 or output.shape[1] < 2:
        return False
    return site.shape[3 - site.channel_dim] == output.shape[1]


def check_causal(sites: Sequence[Site], psi: Sequence[Psi], call: Call, run: Run) -> None:
    """Refuse a loop around a causal network in which an adapter or the context shows a position what comes later.

    Found as in `is_causal`, with one adapter at a time; so the shape of a site's states does not matter.

    Args:
        sites: The sites.
        psi: Adapters that are not the identity, since that shows nothing.
        call: The example, for which the backbone is causal.
        run: Runs the loop.

    Raises:
        ValueError: There is one; the message names its site.
    """
    for index, site in enumerate(sites):
        alone = [adapter if other == index else _keep for other, adapter in enumerate(psi)]
        calm = run(call, alone)
        for begin, changed in _changes(call, calm):
            if not _unmoved(run(changed, alone)[:, :begin], calm[:, :begin]):
                raise ValueError(_message(site, begin))


def _message(site: Site, begin: int) -> str:
    way = (
        "let an adapter use site.causal to mask what is later"
        if site.causal
        else "choose a site whose states have the output's positions, (B, N, C)"
    )
    return (
        f"the backbone is causal at site '{site.name}', but with feedback its outputs before position {begin} see what "
        "comes later: an adapter or the context map mixes positions, or the context is pooled over them. Leave out "
        f"Context(per='sample'), and {way}."
    )


def _keep(h: Tensor, z: Tensor) -> Tensor:
    """The adapter that does nothing."""
    del z
    return h


def _changes(call: Call, output: Tensor) -> list[tuple[int, Call]]:
    """The call with its sequence changed from a position on, for a few positions; none where it has no such sequence.

    A sequence is an argument, no mask, with the samples and positions of y (B, N, K).
    """
    if output.ndim != 3 or output.shape[1] < 2:
        return []
    values: list[tuple[int | str, object]] = [*enumerate(call.args), *call.kwargs.items()]
    sequences = [
        key
        for key, value in values
        if isinstance(value, Tensor)
        and value.ndim >= 2
        and value.shape[:2] == output.shape[:2]
        and "mask" not in str(key)
    ]
    last = output.shape[1] - 1
    beginnings = sorted({1, (last + 1) // 2, last})
    return [(begin, _changed(call, sequences[0], begin)) for begin in beginnings] if sequences else []


def _changed(call: Call, name: int | str, begin: int) -> Call:
    copies = call.detached()
    args = tuple(_change(value, begin) if key == name else value for key, value in enumerate(copies.args))
    return Call(args, {key: _change(value, begin) if key == name else value for key, value in copies.kwargs.items()})


def _change(value: object, begin: int) -> object:
    """Put other tokens, or noise, from position `begin` on."""
    assert isinstance(value, Tensor)
    if value.is_floating_point():
        noise = noise_like(value, seed=0)
        noise[:, :begin] = 0
        return value + noise
    other = torch.where(value == 0, 1, 0).to(value.dtype)  # which any vocabulary has
    return torch.cat([value[:, :begin], other[:, begin:]], dim=1)


def _unmoved(some: Tensor, others: Tensor) -> bool:
    scale = float(others.abs().max()) if others.numel() else 0.0
    return torch.allclose(some, others, rtol=0.0, atol=1e-5 * scale, equal_nan=True)
