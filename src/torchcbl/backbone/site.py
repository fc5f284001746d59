"""Sites: the named submodules whose outputs are the hidden states h^(l).

The file is called `site` and not `sites` because a submodule of that name would hide the function `torchcbl.sites`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import nn

from torchcbl.backbone.calls import Call, Example
from torchcbl.backbone.channels import channel_axis
from torchcbl.backbone.layout import Layout, find_layout
from torchcbl.backbone.names import is_glob, submodules
from torchcbl.backbone.observation import Observation, channel_follows, observe


@dataclass(frozen=True)
class Site:
    """A place where feedback enters: one submodule's output h^(l).

    Args:
        name: Dotted name of the submodule in the backbone.
        shape: Shape of h for the example, batch first, as in (B, C, H, W) or (B, N, D).
        channel_dim: Index of the channel axis in `shape`, at least 1.
        causal: Whether h has the positions of an output that sees, at each position, that and earlier ones alone, as
            in a causal language model; an adapter must keep it so.

    Example:
        >>> Site("layer1", shape=(8, 16, 32, 32), channel_dim=1).channels
        16
    """

    name: str
    shape: tuple[int, ...]
    channel_dim: int
    causal: bool = False

    @property
    def channels(self) -> int:
        """The size C of the channel axis."""
        return self.shape[self.channel_dim]

    @cached_property
    def broadcast_shape(self) -> tuple[int, ...]:
        """What a vector per sample (B, C) is viewed as to broadcast over h: (-1, C, 1, 1) for a feature map."""
        sizes = [1] * len(self.shape)
        sizes[0], sizes[self.channel_dim] = -1, self.channels
        return tuple(sizes)


def sites(backbone: nn.Module, example: Example | None = None) -> list[str]:
    """List the submodules that can be a site, in the order of the module tree.

    Args:
        backbone: The network.
        example: What the network is called with: a tensor, a tuple of positional or a dict of keyword arguments.
            When given, the network runs once (in eval mode, without gradients) and only those submodules remain
            that ran exactly once and returned, alone or in a tuple, dict or dataclass, a tensor with a batch axis and a
            channel axis.

    Returns:
        Dotted names, each of which `ContextLoop(sites=...)` takes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sites(net)
        ['0', '1', '2']
        >>> sites(net, example=torch.zeros(1, 4))
        ['0', '1', '2']
    """
    names = submodules(backbone)
    if example is None:
        return names
    found, _ = _find(backbone, names, Call.from_example(example).detached())
    return [name for name in names if isinstance(found[name], Layout)]


@dataclass(frozen=True)
class Placed:
    """A site, where its hidden state stands in what the submodule returns, and that state's dtype for the example."""

    site: Site
    layout: Layout
    dtype: torch.dtype


def build_sites(backbone: nn.Module, names: Sequence[str], call: Call, channel_dim: int | None) -> list[Placed]:
    """Run the example and return the sites in the order in which they finish.

    Raises:
        ValueError: A site never runs, runs twice, is the same tensor as another, has no batch axis, lies in compiled
            code or under `torch.no_grad`.
        TypeError: A site's output holds no floating-point tensor.
    """
    for name in names:
        _check_not_compiled(backbone, name)
    found, seen = _find(backbone, names, call)
    for fault in found.values():
        if isinstance(fault, Exception):
            raise fault
    layouts = {name: layout for name, layout in found.items() if isinstance(layout, Layout)}
    ordered = sorted(names, key=lambda name: seen[name].order)
    owner: dict[int, str] = {}
    tensors = {name: replace(layouts[name], batch_dim=0).read(seen[name].output) for name in ordered}
    for name in ordered:
        other = owner.setdefault(id(tensors[name]), name)
        if other != name:
            raise ValueError(
                f"sites '{other}' and '{name}' are one and the same tensor (the one returns what the other made): "
                "name only one of them."
            )
    return [_place(backbone, name, seen[name], layouts[name], call, channel_dim) for name in ordered]


def check_order(patterns: str | Sequence[str], ordered: Sequence[str]) -> None:
    """Refuse sites that are named one by one in another order than they run in, or more than once.

    Raises:
        ValueError: They are.
    """
    named = [] if isinstance(patterns, str) else [name for name in patterns if not is_glob(name)]
    for name in named:
        if named.count(name) > 1:
            raise ValueError(f"sites names '{name}' {named.count(name)} times: one site has one adapter, name it once.")
    rank = {name: index for index, name in enumerate(ordered)}
    for earlier, later in itertools.pairwise(named):
        if rank[earlier] > rank[later]:
            raise ValueError(
                f"sites names '{earlier}' before '{later}', but the backbone runs '{later}' first: name them in the "
                "order "
                f"in which they run, sites={[name for name in ordered if name in named]}."
            )


def _find(
    backbone: nn.Module, names: Sequence[str], call: Call
) -> tuple[dict[str, Layout | Exception], dict[str, Observation]]:
    """Find each submodule's hidden state, or why it has none, from two runs with different numbers of samples."""
    seen = observe(backbone, names, call)
    size, others = call.batch_size(), call.resized()
    try:
        resized = observe(backbone, names, others)
    except Exception:  # a forward that fails on another number of samples: anything can come out of it
        resized = {}
    found: dict[str, Layout | Exception] = {}
    for name in names:
        fault = _fault(name, seen[name])
        layout = find_layout(seen[name].output) if fault is None else None
        if fault is None and layout is not None:
            axis = _batch_axis(name, layout, seen[name], resized.get(name), size, others.batch_size())
            fault = axis if isinstance(axis, Exception) else None
            layout = layout if isinstance(axis, Exception) else replace(layout, batch_dim=axis)
        found[name] = layout if fault is None and layout is not None else fault or RuntimeError(name)
    return found, seen


def _fault(name: str, observed: Observation) -> Exception | None:
    if observed.calls == 0:
        return ValueError(
            f"site '{name}' never runs when the model is called with the example: choose a submodule that does; "
            "torchcbl.sites(model, example) lists them."
        )
    if observed.calls > 1:
        return ValueError(
            f"site '{name}' runs {observed.calls} times in one forward pass, expected once: its hidden state is not "
            "one tensor. Choose the module around it, or give each use a module of its own."
        )
    if not observed.had_gradients:
        return ValueError(
            f"site '{name}' runs under torch.no_grad in the backbone's forward, so no adapter there could be trained: "
            "choose a site outside of it, or take the no_grad out of the backbone and call net.freeze_backbone(). "
            "(Where it "
            "is torch.utils.checkpoint that does this, pass it use_reentrant=False.)"
        )
    layout = find_layout(observed.output)
    if layout is None:
        return TypeError(
            f"site '{name}' returns {type(observed.output).__name__} that holds no floating-point tensor with a batch "
            "axis and a channel axis: choose a submodule inside or around it; torchcbl.sites(model, example) lists "
            "them."
        )
    hidden = layout.read(observed.output)
    if not hidden.is_floating_point() or hidden.ndim < 2:
        return TypeError(
            f"site '{name}' returns a tensor of dtype {hidden.dtype} and shape {tuple(hidden.shape)}, expected "
            "floating point with a batch axis and a channel axis: choose another submodule."
        )
    return None


def _batch_axis(
    name: str, layout: Layout, observed: Observation, resized: Observation | None, size: int, other: int
) -> int | Exception:
    """Find the axis that has as many entries as there are samples, for both numbers of samples."""
    shape = layout.read(observed.output).shape
    if layout.packed:
        return 0
    layout_there = None if resized is None or resized.calls != 1 else find_layout(resized.output)
    if resized is None or layout_there is None:
        return 0
    there = layout_there.read(resized.output).shape
    axes = [a for a in range(min(len(shape), len(there))) if (shape[a], there[a]) == (size, other)]
    if axes:
        return axes[0]
    what = f"site '{name}' has hidden states of shape {tuple(shape)} for {size} and {tuple(there)} for {other} samples"
    if shape[0] * other == there[0] * size:
        return ValueError(
            f"{what}: it folds positions into the batch axis (windows, crops), so no context can be told to its "
            "sample. "
            "Choose the module around it that gives them back."
        )
    return ValueError(f"{what}: no axis is the batch, so it cannot differ by sample. Choose another submodule.")


def _check_not_compiled(backbone: nn.Module, name: str) -> None:
    """Refuse a site inside compiled code, and one that is scripted itself, since Python never sees its call."""
    parts = name.split(".")
    for end in range(len(parts) + 1):
        outer = ".".join(parts[:end])
        module = backbone if not outer else backbone.get_submodule(outer)
        scripted = isinstance(module, torch.jit.ScriptModule)
        if scripted or (type(module).__name__ == "OptimizedModule" and end < len(parts)):
            how = "scripted (torch.jit)" if scripted else "compiled (torch.compile)"
            way = "the Python module it was made from" if scripted else f"{outer}._orig_mod in its place"
            where = "is" if end == len(parts) else f"lies inside '{outer or type(backbone).__name__}', which is"
            raise ValueError(
                f"site '{name}' {where} {how}: feedback cannot enter compiled code. Build the loop with {way}, and "
                "compile "
                "the loop instead: torch.compile(net)."
            )


def _place(
    backbone: nn.Module, name: str, observed: Observation, layout: Layout, call: Call, channel_dim: int | None
) -> Placed:
    hidden = layout.read(observed.output)
    shape = tuple(hidden.shape)
    axis = channel_dim
    if axis is None:
        follows = partial(channel_follows, backbone, name, layout, call)
        axis = channel_axis(shape, observed.leaves[: observed.num_leaves], follows)
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"channel_dim must be a whole number, got {axis!r}.")
    if not -len(shape) < axis < len(shape) or axis % len(shape) == 0:
        raise ValueError(
            f"channel_dim={axis} is no axis of site '{name}', whose output has shape {shape}: expected 1 to "
            f"{len(shape) - 1} (axis 0 is the batch), or -1 for the last."
        )
    return Placed(Site(name, shape, axis % len(shape)), layout, hidden.dtype)
