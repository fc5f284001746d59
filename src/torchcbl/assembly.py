"""From what the user named to the parts of a loop: where the output stands, how to cut, what makes the context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from torchcbl.backbone.calls import Call, evaluating, synthesise
from torchcbl.backbone.layout import Key, Layout, find_layout
from torchcbl.backbone.names import not_found, submodules
from torchcbl.backbone.observation import Unfused, eagerly
from torchcbl.backbone.site import Placed, build_sites
from torchcbl.context import Context, ContextMap
from torchcbl.stages import Plan


def unwrap_compiled(backbone: nn.Module) -> nn.Module:
    """Return what a compiled module was made from; the loop is compiled as a whole instead."""
    inner = getattr(backbone, "_orig_mod", None)
    return inner if type(backbone).__name__ == "OptimizedModule" and isinstance(inner, nn.Module) else backbone


def made_up(example: Mapping[str, object], backbone: nn.Module) -> Call:
    """Make a batch of the form an example is described to have, and see that the backbone takes it.

    Raises:
        ValueError: It does not, as one that looks for a certain token.
    """
    call = synthesise(example, backbone)
    try:
        _returned(backbone, call)
    except Exception as error:  # the backbone's own, of any kind
        raise ValueError(
            f"{type(backbone).__name__} fails on a batch that is made up in the form of the loop's example "
            f"({type(error).__name__}: {error}): pass one of your own, example=..."
        ) from error
    return call


def _returned(backbone: nn.Module, call: Call) -> object:
    """Return what the backbone returns in eval mode."""
    with torch.inference_mode(False), torch.no_grad(), evaluating(backbone), eagerly(), Unfused():
        return call.detached().run(backbone)


def find_output(backbone: nn.Module, call: Call, key: Key | None) -> tuple[Layout, Tensor]:
    """Find y in what the backbone returns for the example.

    Raises:
        ValueError: There is no such key, or y has not the shape of an output.
        TypeError: The backbone returns no tensor.
    """
    returned = _returned(backbone, call)
    name = type(backbone).__name__
    try:
        layout = find_layout(returned, key)
    except (LookupError, AttributeError, TypeError) as error:
        raise ValueError(f"output={key!r} is not in the {type(returned).__name__} that {name} returns.") from error
    if layout is None:
        raise TypeError(
            f"{name} returns {type(returned).__name__} without a floating-point tensor (B, K), (B, N, K) or (B, K, H, "
            "W): "
            "wrap it in a module that returns the logits, or name them, output='...'."
        )
    output = layout.read(returned)
    if not output.is_floating_point() or output.ndim < 2:
        raise ValueError(
            f"the backbone's output has shape {tuple(output.shape)} and dtype {output.dtype}, expected floating point "
            "of "
            "shape (B, K), (B, N, K) or (B, K, H, W): wrap the backbone in a module that returns logits of that "
            "shape, or "
            "name them, output='...'."
        )
    return layout, output


def make_plan(
    backbone: nn.Module, placed: Sequence[Placed], start: int, call: Call, source: str | None
) -> tuple[Plan, Placed | None]:
    """Describe the cut; the source of the context is placed as a site is.

    Raises:
        ValueError: The source is no submodule that can be one.
    """
    made = None
    if source is not None:
        known = submodules(backbone)
        if source not in known:
            raise ValueError(not_found("context source", source, ["logits", "probs", *known], backbone))
        made = build_sites(backbone, [source], call.detached(), None)[0]
    plan = Plan(
        kind="traced",
        sites=tuple(one.site.name for one in placed),
        start=start,
        pattern=call.pattern(),
        layouts=tuple(one.layout for one in placed),
        source=source,
        source_layout=Layout() if made is None else made.layout,
    )
    return plan, made


def make_context(context: Context, output: Tensor, made: Placed | None) -> ContextMap:
    """Build g for an output y, or for the submodule that z is made from.

    Raises:
        ValueError: A context per position is asked for where there are none; the probabilities of a single class are
            always 1; or y is minus infinity for some class, of which any weighted sum is NaN.
    """
    if made is None:
        shape, axis = tuple(output.shape), 1 if output.ndim > 3 else output.ndim - 1
        if context.source == "probs" and shape[axis] == 1:
            raise ValueError(
                f"Context(source='probs') is the softmax over one class alone, as y has shape {shape}: it is 1 "
                "whatever the input, so nothing would be fed back. Use source='logits'."
            )
        if context.source == "logits" and context.map is None and not output.is_meta and output.isneginf().any():
            raise ValueError(
                "y is minus infinity for some classes of the example, as where logits are masked, and a context made "
                "of that is NaN: use Context(source='probs'), or mask after the loop."
            )
    else:
        shape, axis = made.site.shape, made.site.channel_dim
    if context.per == "position" and len(shape) < 3:
        raise ValueError(
            f"Context(per='position') needs positions, but its source '{context.source}' has shape {shape}: leave per "
            "out, "
            "or make the context from a submodule that has them."
        )
    pool = context.per == "sample" or (context.per is None and made is not None and output.ndim == 2)
    return ContextMap(context, shape[axis], axis if axis != len(shape) - 1 else -1, pool)
