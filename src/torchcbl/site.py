"""Sites: the named submodules whose outputs are the hidden states h^(l).

The file is called `site` and not `sites` because a submodule of that name would hide the function `torchcbl.sites`.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from torchcbl.calls import Call, Example, evaluating

_CHANNELS_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._BatchNorm,
    nn.GroupNorm,
    nn.modules.instancenorm._InstanceNorm,
)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, nn.RMSNorm, nn.Embedding, nn.MultiheadAttention, nn.Bilinear)


@dataclass(frozen=True)
class Site:
    """A place where feedback enters: one submodule's output h^(l).

    Args:
        name: Dotted name of the submodule in the backbone.
        shape: Shape of h for the example, batch first, as in (B, C, H, W) or (B, N, D).
        channel_dim: Index of the channel axis in `shape`, at least 1.

    Example:
        >>> Site("layer1", shape=(8, 16, 32, 32), channel_dim=1).channels
        16
    """

    name: str
    shape: tuple[int, ...]
    channel_dim: int

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
            that ran exactly once and returned a tensor with a batch axis and a channel axis.

    Returns:
        Dotted names, each of which `ContextLoop(sites=...)` takes.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> sites(net)
        ['0', '1', '2']
        >>> sites(net, example=torch.zeros(1, 4))
        ['0', '1', '2']
    """
    names = [name for name, _ in backbone.named_modules() if name]
    if example is None:
        return names
    seen = observe(backbone, names, Call.from_example(example))
    return [name for name in names if _fault(name, seen[name]) is None]


def match_names(backbone: nn.Module, patterns: str | Sequence[str]) -> list[str]:
    """Turn names and globs into submodule names; `*` stays within one level of the tree, `**` crosses levels.

    Raises:
        ValueError: A pattern matches nothing (the message names the closest names), or none is given.
        TypeError: `patterns` is not a string or a sequence of strings.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 2))
        >>> match_names(net, "*"), match_names(net, "**")
        (['0', '1'], ['0', '0.0', '1'])
    """
    if not isinstance(patterns, (str, Sequence)):
        raise TypeError(f"sites must be names or globs of submodules (str), got {type(patterns).__name__}.")
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    if not wanted:
        raise ValueError("sites is empty: name at least one submodule; torchcbl.sites(model) lists them all.")
    for pattern in wanted:
        if not isinstance(pattern, str):
            raise TypeError(f"sites must be names or globs of submodules (str), got {type(pattern).__name__}.")
    names = sites(backbone)
    matched = {pattern: [name for name in names if matches_glob(name, pattern)] for pattern in wanted}
    for pattern, found in matched.items():
        if not found:
            raise ValueError(not_found("site", pattern, names, backbone))
    return list(dict.fromkeys(name for pattern in wanted for name in matched[pattern]))


def not_found(kind: str, name: str, names: Iterable[str], backbone: nn.Module) -> str:
    """Say that `name` is no submodule, with the closest ones."""
    known = list(names)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = " or ".join(f"'{other}'" for other in close) if close else ", ".join(f"'{n}'" for n in known[:8])
    asked = f"did you mean {hint}?" if close else f"it has {hint or 'no submodules'}."
    return f"{kind} '{name}' not found in {type(backbone).__name__}: {asked} torchcbl.sites(model) lists them all."


def matches_glob(name: str, pattern: str) -> bool:
    """Say whether a dotted name matches a glob; `*` stays within one level, `**` crosses levels."""

    def walk(parts: list[str], globs: list[str]) -> bool:
        if not globs:
            return not parts
        if globs[0] == "**":
            return any(walk(parts[i:], globs[1:]) for i in range(len(parts) + 1))
        return bool(parts) and fnmatch.fnmatchcase(parts[0], globs[0]) and walk(parts[1:], globs[1:])

    return walk(name.split("."), pattern.split("."))


@dataclass
class Observation:
    """What a submodule did in one forward pass."""

    calls: int = 0
    output: object = None
    order: int = -1
    leaf: nn.Module | None = None  # the module inside it that ran last and whose kind tells the channel axis


def observe(backbone: nn.Module, names: Sequence[str], call: Call) -> dict[str, Observation]:
    """Run the backbone once in eval mode, without gradients, and note when and with what each submodule finished."""
    seen = {name: Observation() for name in names}
    clock = 0
    last_leaf: nn.Module | None = None

    def note(name: str) -> object:
        def hook(module: nn.Module, _: object, output: object) -> None:
            nonlocal clock, last_leaf
            if isinstance(module, _CHANNELS_FIRST + _CHANNELS_LAST):
                last_leaf = module
            if name in seen:
                observed = seen[name]
                observed.calls += 1
                observed.output, observed.order, observed.leaf = output, clock, last_leaf
            clock += 1

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in backbone.named_modules(remove_duplicate=False)
        if name
    ]
    try:
        with torch.inference_mode(False), torch.no_grad(), evaluating(backbone):
            call.run(backbone)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def build_sites(backbone: nn.Module, names: Sequence[str], call: Call, channel_dim: int | None) -> list[Site]:
    """Run the example and return the sites in the order in which they finish.

    Raises:
        ValueError: A site never runs, runs twice, is the same tensor as another, or has no batch axis.
        TypeError: A site's output is not a floating-point tensor.
    """
    seen = observe(backbone, names, call)
    for name in names:
        fault = _fault(name, seen[name])
        if fault is not None:
            raise fault
    ordered = sorted(names, key=lambda name: seen[name].order)
    owner: dict[int, str] = {}
    for name in ordered:
        other = owner.setdefault(id(seen[name].output), name)
        if other != name:
            raise ValueError(
                f"sites '{other}' and '{name}' are one and the same tensor (the one returns what the other made): "
                "name only one of them."
            )
    return [_build_site(name, seen[name], channel_dim) for name in ordered]


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
    output = observed.output
    if not isinstance(output, Tensor):
        return TypeError(
            f"site '{name}' returns {type(output).__name__}, expected one tensor: choose a submodule inside or "
            "around it; torchcbl.sites(model, example) lists them."
        )
    if not output.is_floating_point() or output.ndim < 2:
        return TypeError(
            f"site '{name}' returns a tensor of dtype {output.dtype} and shape {tuple(output.shape)}, expected "
            "floating point with a batch axis and a channel axis: choose another submodule."
        )
    return None


def _build_site(name: str, observed: Observation, channel_dim: int | None) -> Site:
    assert isinstance(observed.output, Tensor)
    shape = tuple(observed.output.shape)
    axis = _channel_dim(shape, observed.leaf) if channel_dim is None else channel_dim
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"channel_dim must be a whole number, got {axis!r}.")
    if not -len(shape) < axis < len(shape) or axis % len(shape) == 0:
        raise ValueError(
            f"channel_dim={axis} is no axis of site '{name}', whose output has shape {shape}: expected 1 to "
            f"{len(shape) - 1} (axis 0 is the batch), or -1 for the last."
        )
    return Site(name, shape, axis % len(shape))


def _channel_dim(shape: tuple[int, ...], leaf: nn.Module | None) -> int:
    """Tell the channel axis from the module that made h; without one, feature maps have it at 1, sequences last."""
    if isinstance(leaf, _CHANNELS_LAST):
        return len(shape) - 1
    if isinstance(leaf, _CHANNELS_FIRST):
        return 1
    return 1 if len(shape) != 3 else 2
