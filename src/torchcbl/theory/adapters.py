"""What feedback adapters and contexts do to a bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt

import torch
from torch import Tensor, nn

from torchcbl.adapters import Additive, Concat, Film, Gate
from torchcbl.context import ContextMap
from torchcbl.theory.layers import Shape, along_features, pointwise
from torchcbl.theory.norms import current_weight, linear_norm, matrix_norm
from torchcbl.theory.reach import NoBoundError, Reach


def refined(adapter: nn.Module, h: Reach, z: Reach, shape: Shape, context: Shape) -> Reach:
    """Bound psi(h, z).

    Args:
        adapter: psi.
        h: Reach of the hidden state it is given.
        z: Reach of the context.
        shape: Shape of h.
        context: Shape of z.

    Raises:
        NoBoundError: The adapter is none of those with a bound, or multiplies what is unbounded.
    """
    spread = _spread(adapter, shape, context)
    per_sample = len(context) == 2
    if type(adapter) is Additive:
        return h.plus(z.times(lambda: spread * linear_norm(adapter.down) * linear_norm(adapter.up)))
    if type(adapter) is Concat:
        mixed = h.times(lambda: linear_norm(adapter.hidden))
        return mixed.plus(z.times(lambda: spread * linear_norm(adapter.linear)))
    if type(adapter) is Film:
        return _film(adapter, h, z, spread, per_sample)
    if type(adapter) is Gate:
        return _gate(adapter, h, z, spread)
    raise _unknown(adapter)


def _film(adapter: Film, h: Reach, z: Reach, spread: float, per_sample: bool) -> Reach:
    """(1 + W_g z + b_g) h + W_b z + b_b."""
    if h.value is not None and per_sample:
        return Reach(z.factor * _film_norm(adapter, h.value))
    scales, shifts = current_weight(adapter.linear).cpu().chunk(2)
    if h.size is None:
        raise _unbounded(adapter, "h", _BOUND_H)
    factor = z.factor * spread * (h.size * matrix_norm(scales) + matrix_norm(shifts))
    if h.moves:
        if z.size is None:
            raise _unbounded(adapter, "z", _BOUND_Z)
        bias = adapter.linear.bias.detach().double().cpu().chunk(2)[0]
        factor = factor + h.factor * (1 + (z.size[:, None] * scales.abs().sum(dim=1) + bias.abs()).amax(dim=1))
    return Reach(factor)


def _film_norm(adapter: Film, h: Tensor) -> Tensor:
    """Norm of z -> W_g z * h + W_b z for one h per sample, exactly: the root of the largest eigenvalue of J^T J."""
    axis = adapter.site.channel_dim
    positions = h.double().movedim(axis, -1).reshape(len(h), -1, h.shape[axis])
    scales, shifts = current_weight(adapter.linear).chunk(2)
    first, second = positions.sum(dim=1), positions.square().sum(dim=1)
    cross = torch.einsum("bc,cd,ce->bde", first, scales, shifts)
    gram = torch.einsum("bc,cd,ce->bde", second, scales, scales) + cross + cross.mT
    gram = gram + positions.shape[1] * (shifts.mT @ shifts)
    finite = gram.isfinite().flatten(1).all(dim=1)
    norm = torch.linalg.eigvalsh(torch.where(finite[:, None, None], gram, 0.0)).amax(dim=1).clamp(min=0).sqrt()
    return torch.where(finite, norm, torch.nan).cpu()


def _gate(adapter: Gate, h: Reach, z: Reach, spread: float) -> Reach:
    """s sigmoid(W z + b) h."""
    if h.size is None:
        raise _unbounded(adapter, "h", _BOUND_H)
    reach = spread * h.size  # |sigmoid'| <= 1/4
    if h.value is not None:  # the root mean square over positions in place of the largest |h|
        axis = adapter.site.channel_dim
        squares = h.value.double().square().movedim(axis, -1).reshape(len(h.value), -1, h.value.shape[axis]).sum(dim=1)
        reach = torch.minimum(reach, squares.amax(dim=1).sqrt().cpu())
    turned = z.times(lambda: adapter.scale / 4 * linear_norm(adapter.linear))
    return Reach(turned.factor * reach + adapter.scale * h.factor, adapter.scale * h.size)


@dataclass(frozen=True)
class Budget:
    """What an adapter does whose weights are held to a limit.

        ||psi(h, z) - psi(h', z')|| <= keeps ||h - h'|| + limit gains ||z - z'||

    Args:
        keeps: Its Lipschitz constant in h.
        gains: That in z, for a limit of 1.
        size: Bound of its result's entries, where there is one.
    """

    keeps: float
    gains: float
    size: Tensor | None = None


def budget(adapter: nn.Module, h: Reach, shape: Shape, context: Shape) -> Budget:
    """Say what an adapter does when its weights, those that read z and those that read h, have a norm of at most 1.

    Raises:
        NoBoundError: It is none that can be held so.
    """
    spread = _spread(adapter, shape, context)
    if type(adapter) in (Additive, Concat):
        return Budget(1.0, spread)
    if type(adapter) not in (Film, Gate):
        raise _unknown(adapter)
    if h.moves and type(adapter) is Film:
        raise _unbounded(adapter, "z", "film at the lowest site alone")
    if h.size is None:
        raise _unbounded(adapter, "h", _BOUND_H)
    size = float(h.size.max())
    if isinstance(adapter, Gate):
        return Budget(adapter.scale, spread * size * adapter.scale / 4, adapter.scale * h.size)
    return Budget(1.0, spread * (size + 1))


def held_layers(adapter: nn.Module) -> tuple[dict[str, nn.Linear], dict[str, nn.Linear]]:
    """The layers of an adapter that read z, whose norms multiply to its limit, and those that read h, held to 1."""
    if isinstance(adapter, Additive):
        return {"down": adapter.down, "up": adapter.up}, {}
    if isinstance(adapter, Concat):
        return {"linear": adapter.linear}, {"hidden": adapter.hidden}
    if isinstance(adapter, (Film, Gate)):
        return {"linear": adapter.linear}, {}
    raise _unknown(adapter)


def prepared(context: ContextMap, source: Reach, shape: Shape, masked: bool) -> tuple[Reach, Shape]:
    """Bound what g's map is given, and say what shape it has; where positions are masked, as if only one were real."""
    axis = context.channel_dim % len(shape)
    rest = (*(size for index, size in enumerate(shape) if index != axis), shape[axis])
    if context.source == "probs":
        source = pointwise("softmax", source)
    if context.pool and len(shape) > 2:
        source = source.kept(1.0 if masked else 1.0 / sqrt(prod(rest[1:-1])))
        rest = (rest[0], rest[-1])
    return source, rest


def made(context: ContextMap, source: Reach, shape: Shape, masked: bool) -> tuple[Reach, Shape]:
    """Bound z = g(source), and say what shape z has.

    Raises:
        NoBoundError: A map of the caller's own has no bound.
    """
    source, before = prepared(context, source, shape, masked)
    after = (*before[:-1], context.dim)
    for layer in context.map if type(context.map) is nn.Sequential else [context.map]:
        source = along_features(layer, source)
    return source, after


def simplex_size(context: ContextMap) -> Tensor | None:
    """Bound the entries of z where it is an affine map of probabilities: the values at the corners are the largest.

    Where all positions are masked the mean over them is 0, which is the last corner.
    """
    if context.source != "probs" or not isinstance(context.map, nn.Linear):
        return None
    weight = current_weight(context.map)
    bias = weight.new_zeros(len(weight)) if context.map.bias is None else context.map.bias.detach().double()
    return torch.cat([weight + bias[:, None], bias[:, None]], dim=1).abs().amax().reshape(1).cpu()


def _spread(adapter: nn.Module, shape: Shape, context: Shape) -> float:
    """Norm of writing one value per channel to all positions of h: sqrt(positions); 1 where z has h's positions.

    Raises:
        NoBoundError: z is resized to h's grid.
    """
    axis = getattr(getattr(adapter, "site", None), "channel_dim", 1)
    positions = [size for index, size in enumerate(shape) if index not in (0, axis)]
    if len(context) == 2:
        return sqrt(prod(positions))
    if list(context[1:-1]) != positions:
        raise NoBoundError(
            f"the context's positions {tuple(context[1:-1])} are resized to those of '{_place(adapter)}': "
            "use Context(per='sample')"
        )
    return 1.0


def _place(adapter: nn.Module) -> str:
    return str(getattr(getattr(adapter, "site", None), "name", "?"))


def _unknown(adapter: nn.Module) -> NoBoundError:
    return NoBoundError(
        f"no bound is known for the {type(adapter).__name__} at '{_place(adapter)}': use adapter='additive' or 'concat'"
    )


def _unbounded(adapter: nn.Module, what: str, remedy: str) -> NoBoundError:
    return NoBoundError(
        f"{type(adapter).__name__} at '{_place(adapter)}' multiplies h by a function of z, and nothing bounds {what}: "
        f"use adapter='additive' or 'concat', or {remedy}"
    )


_BOUND_H = "a site behind tanh or sigmoid"
_BOUND_Z = "Context(source='probs') of more dimensions than y has"
