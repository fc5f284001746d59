"""The manifest of a save, `config.json`: how the loop was built and what every tensor of it must be."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from torchcbl.adapters import CUSTOM
from torchcbl.backbone.layout import Key
from torchcbl.context import Context
from torchcbl.sharing.fingerprint import Inventory, inventory
from torchcbl.sharing.options import describe_option, restore_option

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

CONFIG = "config.json"
FORMAT = 2


class LoopEntry(TypedDict):
    """The arguments of `ContextLoop`, as plain data."""

    sites: list[str]
    adapter: str | dict[str, str]
    context: dict[str, object]
    steps: int
    alpha: float
    schedule: str
    step_norm: str
    channel_dim: int | None
    output: Key | None
    cut: str
    example: dict[str, object]
    solver: object
    gradient: object
    halting: object
    raise_on: list[str]
    contractive: float | None


BackboneEntry = TypedDict("BackboneEntry", {"class": str, "included": bool, "tensors": Inventory})


class Manifest(TypedDict):
    """What `config.json` holds."""

    format: int
    loop: LoopEntry
    backbone: BackboneEntry
    added: Inventory


def make_manifest(net: ContextLoop, added: Inventory, include_backbone: bool) -> Manifest:
    """Describe a loop whose own tensors are `added`."""
    config = net.config
    return {
        "format": FORMAT,
        "loop": {
            "sites": [site.name for site in net.sites],
            "adapter": config.adapter,
            "context": {**asdict(config.context), "map": CUSTOM if config.custom_context else None},
            "steps": config.steps,
            "alpha": config.alpha,
            "schedule": config.schedule,
            "step_norm": config.step_norm,
            "channel_dim": config.channel_dim,
            "output": config.output,
            "cut": config.cut,
            "example": config.example,
            "contractive": None if net.bound is None else net.bound.gamma,
            "solver": describe_option(config.settings.solver),
            "gradient": describe_option(config.settings.gradient),
            "halting": describe_option(config.settings.halting),
            "raise_on": list(config.settings.raise_on),
        },
        "backbone": {
            "class": type(net.backbone).__name__,
            "included": include_backbone,
            "tensors": inventory(net.backbone.state_dict()),
        },
        "added": added,
    }


def read_manifest(folder: Path) -> Manifest:
    """Read and check `config.json`, which may come from a stranger.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is damaged, or of another format.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: pass the folder that net.save(folder) wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format"]
        if version == FORMAT:
            _check(config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the loop again.") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, expected {FORMAT}: use the torchcbl that wrote it.")
    return cast(Manifest, config)


def saved_context(loop: LoopEntry) -> Context:
    """Build the context that was saved, without the map of the caller's own that it may have had."""
    return Context(**{**loop["context"], "map": None})  # type: ignore[arg-type]


_LOOP_TYPES: dict[str, tuple[type, ...]] = {
    "sites": (list,),
    "adapter": (str, dict),
    "context": (dict,),
    "steps": (int,),
    "alpha": (int, float),
    "schedule": (str,),
    "step_norm": (str,),
    "channel_dim": (int, type(None)),
    "output": (str, int, type(None)),
    "cut": (str,),
    "example": (dict,),
    "solver": (str, dict),
    "gradient": (str, dict),
    "halting": (str, dict),
    "raise_on": (list,),
    "contractive": (int, float, type(None)),
}


def _check(config) -> None:  # type: ignore[no-untyped-def]
    """Check that all is there and of its type."""
    loop, backbone = config["loop"], config["backbone"]
    for key, types in _LOOP_TYPES.items():
        if not isinstance(loop[key], types):
            raise TypeError(f"loop.{key} is {loop[key]!r}")
    if not all(isinstance(name, str) for name in loop["sites"]):
        raise TypeError(f"loop.sites is {loop['sites']!r}")
    if loop["context"]["map"] not in (None, CUSTOM):
        raise TypeError(f"loop.context.map is {loop['context']['map']!r}")
    saved_context(loop)
    for key in ("solver", "gradient", "halting"):
        restore_option(loop[key])
    if not isinstance(backbone["included"], bool):
        raise TypeError(f"backbone.included is {backbone['included']!r}")
    for name, row in [*backbone["tensors"].items(), *config["added"].items()]:
        if not isinstance(row, list) or len(row) != 3:
            raise TypeError(f"the entry of tensor '{name}' is {row!r}")
