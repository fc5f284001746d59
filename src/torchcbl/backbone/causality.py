"""Causal networks: finding that position i of the output sees no later one, and keeping it so under feedback.

What a network sees is found by trying: an argument is changed from some position on, and y before that must not move.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchcbl.backbone.calls import Call, evaluating
from torchcbl.backbone.layout import Key, Layout
from torchcbl.backbone.observation import Unfused, eagerly
from torchcbl.backbone.probing import distance, move_at_random, noise_like
from torchcbl.backbone.site import Site
from torchcbl.schedules import Psi

Run = Callable[[Call, Sequence[Psi]], Tensor]
"""Runs the loop on a call with the given adapters and returns y_T."""


@dataclass(frozen=True)
class _Sight:
    """What y (B, N, K) at a position sees of an argument, (B, N, ...).

    Args:
        heard: Whether y moves at all when the argument changes.
        later: Whether it sees later positions; None where y moved so little that rounding may have done it.
        earlier: Whether it sees earlier positions; not asked where it sees later ones.
        refusal: Why the backbone does not take another value of it.
    """

    heard: bool = False
    later: bool | None = False
    earlier: bool = False
    refusal: Exception | None = None


def causal_arguments(backbone: nn.Module, call: Call, layout: Layout, output: Tensor) -> tuple[Key, ...]:
    """Name the arguments of which y (B, N, K) at a position sees that and earlier positions alone; none if not causal.

    Every argument is tried that has the samples and positions of y and is no mask. One that y sees whole does not keep
    the others from being causal, as the source of an encoder-decoder; beside it, one of which each position sees its
    own entry alone, as a weight, makes nothing causal. Where weights of zero, or next to it, leave that open, a copy
    of the backbone is asked whose weights are moved at random.

    Args:
        backbone: The network.
        call: The example.
        layout: Where y stands in what it returns.
        output: y for the example.

    Returns:
        Positions and keywords of arguments.

    Raises:
        Exception: The backbone's own, where it takes another value of none that y may see.
    """
    names = _sequences(call, output)
    if not names:
        return ()
    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly(), Unfused():
        sights = _sights(backbone, call, layout, names)
        if not _is_told(sights.values()):
            moved = copy.deepcopy(backbone)
            move_at_random(moved)
            sights = _sights(moved, call, layout, names)
    found = sights.values()
    refusal = next((sight.refusal for sight in found if sight.refusal is not None), None)
    if refusal is not None and not any(sight.heard for sight in found):
        raise refusal
    ordered = any(sight.earlier or sight.later is None for sight in found)
    if any(sight.later for sight in found) and not ordered:
        return ()
    return tuple(name for name, sight in sights.items() if sight.heard and not sight.later)


def has_positions_of(site: Site, output: Tensor) -> bool:
    """Say whether h at a site runs over the output's positions."""
    if output.ndim != 3 or len(site.shape) != 3 or output.shape[1] < 2:
        return False
    return site.shape[3 - site.channel_dim] == output.shape[1]


def check_causal(sites: Sequence[Site], psi: Sequence[Psi], call: Call, names: Sequence[Key], run: Run) -> bool:
    """Refuse a loop around a causal network in which an adapter or the context shows a position what comes later.

    Found with one adapter at a time; so the shape of a site's states does not matter.

    Args:
        sites: The sites.
        psi: Adapters that are not the identity, since that shows nothing.
        call: The example.
        names: The arguments in which the backbone is causal, as `causal_arguments` says.
        run: Runs the loop.

    Returns:
        Whether that is sure: each adapter moves y, and none shows so little that rounding may have done it.

    Raises:
        ValueError: There is one; the message names its site.
    """
    plain, sure = run(call, [_keep] * len(sites)), True
    for index, site in enumerate(sites):
        alone = [adapter if other == index else _keep for other, adapter in enumerate(psi)]
        calm = run(call, alone)
        sure = sure and bool(distance(calm, plain).any())
        for begin in _beginnings(calm):
            later = _sees_later(run(_changed(call, names, slice(begin, None)), alone), calm, begin)
            if later:
                raise ValueError(_message(site, begin))
            sure = sure and later is False
    return sure


def _message(site: Site, begin: int) -> str:
    way = (
        "let an adapter use site.causal to mask what is later; in an encoder, which a decoder sees whole, make the "
        "context there, Context(source=...)"
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


def _sequences(call: Call, output: Tensor) -> list[Key]:
    """The arguments, no masks, with the samples and positions of y (B, N, K)."""
    if output.ndim != 3 or output.shape[1] < 2:
        return []
    values: list[tuple[Key, object]] = [*enumerate(call.args), *call.kwargs.items()]
    return [
        key
        for key, value in values
        if isinstance(value, Tensor)
        and value.ndim >= 2
        and value.shape[:2] == output.shape[:2]
        and "mask" not in str(key)
    ]


def _beginnings(output: Tensor) -> list[int]:
    """The positions from which on an argument is changed."""
    last = output.shape[1] - 1
    return sorted({1, (last + 1) // 2, last})


def _sights(backbone: nn.Module, call: Call, layout: Layout, names: Sequence[Key]) -> dict[Key, _Sight]:
    """Find what y sees of each argument."""

    def run(given: Call) -> Tensor:
        return layout.read(given.detached().run(backbone))

    output = run(call)
    return {name: _sight(run, call, name, output) for name in names}


def _sight(run: Callable[[Call], Tensor], call: Call, name: Key, output: Tensor) -> _Sight:
    """Change an argument from some positions on, then before one; nothing is heard of one that may not be changed."""
    heard, middle = False, output.shape[1] // 2
    later: bool | None = False
    try:
        for begin in _beginnings(output):
            changed = run(_changed(call, [name], slice(begin, None)))
            heard = heard or bool(distance(changed, output).any())
            found = _sees_later(changed, output, begin)
            if found:
                return _Sight(heard, later=True)
            later = later if found is False else None
        first = min(1, middle - 1)  # the first position may have to hold a token that begins a text
        changed = run(_changed(call, [name], slice(first, middle)))
    except Exception as error:  # the backbone's own, as where an embedding has one row
        return _Sight(refusal=error)
    earlier = bool(distance(changed, output)[:, middle:].any())
    return _Sight(heard or earlier, later, earlier)


def _is_told(sights: Collection[_Sight]) -> bool:
    """Say whether what is heard is clear: it comes in an order, or is seen whole in every argument."""
    heard = [sight for sight in sights if sight.heard]
    clear = all(sight.later is not None for sight in heard)
    return bool(heard) and clear and (any(sight.earlier for sight in heard) or all(sight.later for sight in heard))


def _sees_later(some: Tensor, others: Tensor, begin: int) -> bool | None:
    """Say whether y moved before what was changed; None where it moved too little to tell it from rounding."""
    moved = distance(some, others)
    before = float(moved[:, :begin].max())
    if before > max(1e-5 * _size(moved), 1e-6 * _size(others)):
        return True
    return None if before else False


def _size(tensor: Tensor) -> float:
    """The largest finite absolute value."""
    return float(tensor.abs().nan_to_num(nan=0.0, posinf=0.0).max())


def _changed(call: Call, names: Sequence[Key], positions: slice) -> Call:
    """The call with other tokens, or noise, at some positions of some arguments."""
    copies = call.detached()
    args = tuple(_change(value, positions) if key in names else value for key, value in enumerate(copies.args))
    return Call(
        args, {key: _change(value, positions) if key in names else value for key, value in copies.kwargs.items()}
    )


def _change(value: object, positions: slice) -> Tensor:
    assert isinstance(value, Tensor)
    if value.is_floating_point():
        other = value + noise_like(value, seed=0)
    else:
        other = torch.where(value == 0, 1, 0).to(value.dtype)  # which any vocabulary has
    changed = value.clone()
    changed[:, positions] = other[:, positions]
    return changed
