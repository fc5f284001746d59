"""Saving and loading: what the loop adds goes into safetensors, how it was built into JSON; nothing is pickled."""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from torch import Tensor, nn

from torchcbl.adapters import CUSTOM, AdapterChoice
from torchcbl.calls import synthesise
from torchcbl.context import Context
from torchcbl.files import write_atomically

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

CONFIG, ADDED, BACKBONE = "config.json", "adapters.safetensors", "backbone.safetensors"
FORMAT = 1
Inventory = dict[str, list[object]]
"""Of each tensor: dtype, shape, and the first 16 hex digits of the SHA-256 of its bytes."""


def save(net: ContextLoop, folder: str | PathLike[str], *, include_backbone: bool = False) -> None:
    """Write a loop to a folder.

    `adapters.safetensors` holds adapters, context and the per-step batch statistics; `config.json` holds how the loop
    was built and a fingerprint of the backbone (each tensor's dtype, shape and digest). Every file is written whole or
    not at all.

    Args:
        net: The loop.
        folder: Made if it is not there; files of an earlier save are replaced.
        include_backbone: Whether to write the backbone's own weights too, as `backbone.safetensors`.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be written.
    """
    target = Path(folder)
    added = added_state(net)
    config = {
        "format": FORMAT,
        "loop": _loop_config(net),
        "backbone": {
            "class": type(net.backbone).__name__,
            "included": include_backbone,
            "tensors": inventory(net.backbone.state_dict()),
        },
        "added": inventory(added),
    }
    write_atomically(target / ADDED, _pack(added))
    if include_backbone:
        write_atomically(target / BACKBONE, _pack(net.backbone.state_dict()))
    else:
        (target / BACKBONE).unlink(missing_ok=True)
    write_atomically(target / CONFIG, json.dumps(config, indent=1) + "\n")


def load(
    folder: str | PathLike[str],
    backbone: nn.Module,
    *,
    adapter: AdapterChoice | None = None,
    context: Context | None = None,
) -> ContextLoop:
    """Put a saved loop around a backbone.

    The backbone must be the one it was saved with, tensor for tensor; when its weights were saved too, they are
    loaded into it and only names, dtypes and shapes must agree.

    Args:
        folder: What `net.save` wrote.
        backbone: The network to put the loop around.
        adapter: The adapters' classes or factories when they were not named ones: code is never read from a file.
        context: The context when it had a `map` of its own, for the same reason.

    Returns:
        The loop, in the backbone's train or eval mode.

    Raises:
        FileNotFoundError: A file of the save is missing.
        ValueError: A file is damaged, or the backbone differs; the message names what differs.
        ImportError: safetensors is not installed.

    Example:
        >>> import tempfile, torch
        >>> from torchcbl import ContextLoop
        >>> backbone = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> net = ContextLoop(backbone, sites="1", example=torch.zeros(2, 4))
        >>> folder = tempfile.mkdtemp()
        >>> net.save(folder)
        >>> again = load(folder, backbone)
    """
    from torchcbl.loop import ContextLoop

    source = Path(folder)
    config = _read_config(source)
    saved, loop = config["backbone"], config["loop"]
    included = bool(saved["included"])
    _check("the backbone", saved["tensors"], inventory(backbone.state_dict()), digests=not included)
    added = _read_tensors(source / ADDED, config["added"])
    weights = _read_tensors(source / BACKBONE, saved["tensors"]) if included else None
    example = synthesise(loop["example"], backbone)
    net = ContextLoop(
        backbone,
        loop["sites"],
        example.kwargs or example.args,
        _adapter_choice(loop["adapter"], adapter),
        _context(loop["context"], context),
        loop["steps"],
        loop["alpha"],
        loop["schedule"],
        step_norm=loop["step_norm"],
        channel_dim=loop["channel_dim"],
        cut=loop["cut"],
        allow_dead=True,
    )
    _check("the loop", config["added"], inventory(added_state(net)), digests=False)
    missing, unexpected = net.load_state_dict(added, strict=False)
    assert not unexpected
    assert all(name.startswith("backbone.") for name in missing)
    if weights is not None:  # last, so that whatever is refused leaves the backbone as it was
        backbone.load_state_dict(weights)
    return net


def added_state(net: ContextLoop) -> dict[str, Tensor]:
    """All that the loop adds to the backbone: adapters, context, per-step statistics."""
    return {name: value for name, value in net.state_dict().items() if not name.startswith("backbone.")}


def inventory(state: Mapping[str, Tensor]) -> Inventory:
    """List dtype, shape and digest of each tensor."""
    return {
        name: [str(value.dtype).removeprefix("torch."), list(value.shape), _digest(value)]
        for name, value in state.items()
    }


def _digest(tensor: Tensor) -> str:
    flat = tensor.detach().cpu().contiguous()
    return hashlib.sha256(ctypes.string_at(flat.data_ptr(), flat.numel() * flat.element_size())).hexdigest()[:16]


def _pack(state: Mapping[str, Tensor]) -> bytes:
    # clones, because safetensors refuses tensors that share memory (tied weights)
    packed: bytes = _safetensors().save({k: value.detach().cpu().contiguous().clone() for k, value in state.items()})
    return packed


def _safetensors() -> ModuleType:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "saving and loading need safetensors, which is not installed: pip install 'torchcbl[storage]'."
        ) from error
    return importlib.import_module("safetensors.torch")


def _loop_config(net: ContextLoop) -> dict[str, object]:
    config = net.config
    return {
        "sites": [site.name for site in net.sites],
        "adapter": config.adapter,
        "context": {**asdict(config.context), "map": CUSTOM if config.custom_context else None},
        "steps": config.steps,
        "alpha": config.alpha,
        "schedule": config.schedule,
        "step_norm": config.step_norm,
        "channel_dim": config.channel_dim,
        "cut": net.plan.kind,
        "example": config.example,
    }


def _adapter_choice(saved: object, given: AdapterChoice | None) -> AdapterChoice:
    if given is not None:
        return given
    if saved == CUSTOM or (isinstance(saved, dict) and CUSTOM in saved.values()):
        raise ValueError(
            "the loop was saved with adapters of the caller's own, whose code is not in the file: pass the same class "
            "or factory as load(..., adapter=...)."
        )
    assert isinstance(saved, (str, dict))
    return saved


def _context(saved: Mapping[str, object], given: Context | None) -> Context:
    if given is not None:
        return given
    if saved["map"] is not None:
        raise ValueError(
            "the loop was saved with a context map of the caller's own, whose code is not in the file: pass the same "
            "Context as load(..., context=...)."
        )
    return Context(**saved)  # type: ignore[arg-type]


def _read_config(folder: Path):  # type: ignore[no-untyped-def]
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"no {CONFIG} in {folder}: pass the folder that net.save(folder) wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        version = config["format"]
        if version == FORMAT:
            _check_config(config)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the loop again.") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, expected {FORMAT}: use the torchcbl that wrote it.")
    return config


_LOOP_TYPES: dict[str, tuple[type, ...]] = {
    "sites": (list,),
    "adapter": (str, dict),
    "context": (dict,),
    "steps": (int,),
    "alpha": (int, float),
    "schedule": (str,),
    "step_norm": (str,),
    "channel_dim": (int, type(None)),
    "cut": (str,),
    "example": (dict,),
}


def _check_config(config) -> None:  # type: ignore[no-untyped-def]
    """Check that all is there and of its type."""
    for key, types in _LOOP_TYPES.items():
        if not isinstance(config["loop"][key], types):
            raise TypeError(f"loop.{key} is {config['loop'][key]!r}")
    if not isinstance(config["backbone"]["included"], bool):
        raise TypeError(f"backbone.included is {config['backbone']['included']!r}")
    for name, row in [*config["backbone"]["tensors"].items(), *config["added"].items()]:
        if not isinstance(row, list) or len(row) != 3:
            raise TypeError(f"the entry of tensor '{name}' is {row!r}")


def _read_tensors(path: Path, expected: Inventory) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the save is not whole; save the loop again.")
    try:
        tensors: dict[str, Tensor] = _safetensors().load(path.read_bytes())
    except ImportError:
        raise
    except Exception as error:  # safetensors has an exception class of its own for each kind of damage
        raise ValueError(f"{path} is damaged ({error}): save the loop again.") from error
    _check(str(path), expected, inventory(tensors), digests=True)
    return tensors


def _check(what: str, expected: Inventory, found: Inventory, digests: bool) -> None:
    """Refuse what differs, by name."""
    differences = [f"'{name}' is missing" for name in expected if name not in found]
    differences += [f"'{name}' is not in the save" for name in found if name not in expected]
    values = []
    for name in (name for name in expected if name in found):
        (dtype, shape, digest), (dtype_found, shape_found, digest_found) = expected[name], found[name]
        if (dtype, shape) != (dtype_found, shape_found):
            differences.append(f"'{name}' is {dtype_found} {shape_found}, expected {dtype} {shape}")
        elif digests and digest != digest_found:
            values.append(f"'{name}' has other values")
    differences += values
    if differences:
        shown = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise ValueError(
            f"{what} differs from what was saved: {shown}. Load with the same architecture and weights, or save with "
            "include_backbone=True."
        )
