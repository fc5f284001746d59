"""Loops that contract by construction."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchcbl.adapters.bounded import BoundedLinear, Limits, bounds_kept
from torchcbl.arguments import check_loop
from torchcbl.backbone.calls import Call, synthesise
from torchcbl.eager import uncompiled
from torchcbl.step_norm import differs_by_step, is_dropout, norms_at
from torchcbl.theory import adapters
from torchcbl.theory.certificate import Certifier
from torchcbl.theory.layers import Shape
from torchcbl.theory.norms import stamp
from torchcbl.theory.reach import NoBoundError, Reach

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

_NO_LIMIT = float("inf")


@dataclass
class Bound:
    """What `make_contractive` holds a loop to.

    Args:
        gamma: The bound.
        valid_for: Shapes of the input and state of the backbone for which the adapters' limits were computed.
    """

    gamma: float
    valid_for: object = None


def make_contractive(net: ContextLoop, gamma: float = 0.9) -> ContextLoop:
    """Bound a loop's Lipschitz constant by construction, so that Theorem 3.1 holds.

        ||F(s) - F(s')|| <= gamma ||s - s'||   for all states s, s' and all inputs

    The context's weight is held to a spectral norm of gamma, and what each of the L adapters does with z to 1 / (L B),
    where B bounds what the backbone above that adapter (its layers, the adapters further up, pooling, softmax) makes of
    a change there. All norms are computed, none estimated from below. Weights within their limits stay as they are.
    While the backbone trains its part is computed again whenever its weights have changed: `net.freeze_backbone()`
    spares that.

    Args:
        net: The loop: "repropagate" with alpha = 0 or one site, or "synchronous" with one; cut by a trace, with
            adapters "additive" or "concat", or "gate" (and "film" at the lowest site) where tanh or the like bounds h.
            Changed in place.
        gamma: The bound, in (0, 1).

    Returns:
        The loop itself. Its parameters and their names are as before; `net.save` keeps gamma.

    Raises:
        ValueError: gamma is out of its range, or no such bound can be had: the message says what stands in the way.
            Also raised by a later call of the loop, if that has shapes or parts for which there is none.
        TypeError: `net` is no loop.

    Source:
        Theorem 3.1 of the paper (Banach's fixed-point theorem); norms of layers multiplied: Gouk et al. 2021, arXiv
        1804.04368; normalisation by them: Miyato et al. 2018, arXiv 1802.05957.

    Example:
        >>> from torchcbl import ContextLoop, contraction
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> x = torch.randn(5, 4)
        >>> net = make_contractive(ContextLoop(backbone, "1", x, adapter="additive"), gamma=0.5)
        >>> bool((contraction(net, x).certified <= 0.5).all())
        True
    """
    check_loop("make_contractive", net)
    if isinstance(gamma, bool) or not isinstance(gamma, (int, float)) or not 0.0 < gamma < 1.0:
        raise ValueError(f"gamma must lie in (0, 1), got {gamma!r}: the loop is a contraction only below 1.")
    _check_norms(net)
    call = synthesise(net.config.example, net.backbone)
    try:
        _amplifications(net, call)
        layers = [adapters.held_layers(adapter) for adapter in net.adapters.values()]
    except NoBoundError as error:
        raise ValueError(f"this loop cannot be made contractive: {error}.") from error
    context_map = net.context.map
    if not isinstance(context_map, nn.Linear):
        raise ValueError(
            f"this loop cannot be made contractive: the context's map is a {type(context_map).__name__}, and only the "
            "affine one can be held: leave Context.map out."
        )
    held = [context_map, *(layer for pair in layers for part in pair for layer in part.values())]
    for name, module in net.named_modules():
        if module in held and "weight" not in module._parameters:
            raise ValueError(
                f"this loop cannot be made contractive: '{name}' computes its weight from other parameters, which "
                "would no longer be trained. Call torch.nn.utils.parametrize.remove_parametrizations first."
            )
    net.context.map = BoundedLinear(context_map, gamma)
    for adapter, (read_z, read_h) in zip(net.adapters.values(), layers, strict=True):
        for name, layer in read_z.items():
            setattr(adapter, name, BoundedLinear(layer, _NO_LIMIT))
        for name, layer in read_h.items():
            setattr(adapter, name, BoundedLinear(layer, 1.0))
    net.bound = Bound(float(gamma))
    hold(net, call)
    return net


@contextmanager
def held(net: ContextLoop, call: Call) -> Iterator[None]:
    """Hold a contractive loop to its bound for the further steps of a call, each norm computed but once."""
    with bounds_kept(hold(net, call)):
        yield


@uncompiled
def hold(net: ContextLoop, call: Call) -> Limits:
    """Return the limits of a loop's adapters, and set them anew where the backbone or the shapes of its input changed.

    Raises:
        ValueError: There is no bound for this call.
    """
    bound = net.bound
    if bound is None or torch.compiler.is_compiling():  # an export keeps the limits that there are
        return {}
    _check_norms(net)
    now = _valid_for(net, call)
    with _SETTING:
        if now != bound.valid_for:
            _set_limits(net, call)
            bound.valid_for = now
        return {layer: layer.limit for adapter in net.adapters.values() for layer in _reading_z(adapter)}


_SETTING = threading.RLock()
"""A call of another shape in another thread sets other limits."""


def _reading_z(adapter: nn.Module) -> list[BoundedLinear]:
    return [layer for layer in adapters.held_layers(adapter)[0].values() if isinstance(layer, BoundedLinear)]


def _set_limits(net: ContextLoop, call: Call) -> None:
    try:
        amplified = _amplifications(net, call)
    except NoBoundError as error:
        raise ValueError(f"this loop is made contractive, which it cannot be in this call: {error}.") from error
    for adapter, amplification in zip(net.adapters.values(), amplified, strict=True):
        limit = 1.0 / (len(amplified) * amplification) if amplification > 0 else _NO_LIMIT
        layers = _reading_z(adapter)
        for layer in layers:
            layer.limit = limit ** (1.0 / len(layers))


def _amplifications(net: ContextLoop, call: Call) -> list[float]:
    """Say for each adapter how far what g's map is given moves when z moves by 1 and it alone, held to 1, reads z.

    Raises:
        NoBoundError: The loop is none that can be bounded.
    """
    with torch.inference_mode(False):
        certifier = Certifier(net, call.detached(), at_call=False)
    _, z_shape = certifier.made(Reach.unknown())
    modules = list(net.adapters.values())

    def amplification(active: int) -> float:
        def refine(index: int, h: Reach, shape: Shape) -> Reach:
            does = adapters.budget(modules[index], h, shape, z_shape)
            return Reach(does.keeps * h.factor + (does.gains if index == active else 0.0), does.size)

        source = certifier.walk(refine)
        read = adapters.prepared(net.context, source, certifier.shapes[certifier.source], certifier.masked)[0]
        return float(read.factor.max())

    return [amplification(index) for index in range(len(modules))]


def _check_norms(net: ContextLoop) -> None:
    """Refuse batch norm that makes each step another map: that of what runs again, for the rest runs once.

    Raises:
        ValueError: There is some.
    """
    mode = net.config.step_norm
    if differs_by_step(mode, norms_at(net.backbone, net.norm_names).values()):
        raise ValueError(
            f"a contractive loop needs one map for all steps, but batch norm with step_norm={mode!r} makes each step "
            "another: build the loop with step_norm='frozen'."
        )


def _valid_for(net: ContextLoop, call: Call) -> object:
    """What the limits depend on: shapes of the input, weights, statistics and dropout of what runs again."""
    shapes = tuple(tuple(value.shape[1:]) for value in call.values() if isinstance(value, Tensor))
    replayed = net.cut_for(call).replayed_modules().values()
    weights = tuple(stamp(weight) for module in replayed for weight in module.parameters())
    variances = tuple(
        tuple(value.tolist())
        for module in replayed
        if isinstance(value := getattr(module, "running_var", None), Tensor)
    )
    dropped = tuple((module.training, getattr(module, "p", None)) for module in replayed if is_dropout(module))
    return shapes, weights, variances, dropped
