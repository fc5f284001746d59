"""Saving and loading: what the loop adds goes into safetensors, how it was built into JSON; nothing is pickled."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from torchcbl.adapters import CUSTOM, AdapterChoice, restore_adapters
from torchcbl.assembly import made_up, unwrap_compiled
from torchcbl.backbone.calls import Example
from torchcbl.context import Context
from torchcbl.files import write_together
from torchcbl.halting import Halting
from torchcbl.settings import GradientChoice, SolverChoice
from torchcbl.sharing.fingerprint import (
    Inventory,
    check_backbone,
    differences,
    inventory,
    is_packed,
    is_wrapper,
    refuse,
)
from torchcbl.sharing.manifest import CONFIG, LoopEntry, make_manifest, read_manifest, saved_context
from torchcbl.sharing.options import choose_option

if TYPE_CHECKING:
    from torchcbl.loop import ContextLoop

ADDED, BACKBONE = "adapters.safetensors", "backbone.safetensors"
ADDED_PARTS = ("adapters", "context", "step_norm")


def save(net: ContextLoop, folder: str | PathLike[str], *, include_backbone: bool = False) -> None:
    """Write a loop to a folder.

    `adapters.safetensors` holds adapters, context and the per-step batch statistics; `config.json` holds how the loop
    was built and a fingerprint of the backbone (each tensor's dtype, shape and digest). A save that fails, as on a full
    disk, leaves an earlier one as it was.

    Args:
        net: The loop.
        folder: Made if it is not there; files of an earlier save are replaced.
        include_backbone: Whether to write the backbone's own weights too, as `backbone.safetensors`.

    Raises:
        ValueError: The loop is sharded (FSDP2), so that this process holds only a part of each tensor; or what is to be
            written has values that safetensors cannot hold, as quantised weights.
        ImportError: safetensors is not installed.
        OSError: The folder cannot be written.
    """
    _check_whole(net)
    target = Path(folder)
    added = added_state(net)
    manifest = make_manifest(net, inventory(added), include_backbone)
    weights = {target / BACKBONE: _pack(_weights(net.backbone))} if include_backbone else {}
    described = json.dumps(manifest, indent=1) + "\n"
    write_together({target / ADDED: _pack(added), **weights, target / CONFIG: described})
    if not include_backbone:
        (target / BACKBONE).unlink(missing_ok=True)


def load(
    folder: str | PathLike[str],
    backbone: nn.Module,
    *,
    adapter: AdapterChoice | None = None,
    context: Context | None = None,
    solver: SolverChoice | None = None,
    gradient: GradientChoice | None = None,
    halting: Halting | None = None,
    example: Example | None = None,
) -> ContextLoop:
    """Put a saved loop around a backbone.

    The backbone must be the one it was saved with, tensor for tensor; when its weights were saved too, they are
    loaded into it and only names, dtypes and shapes must agree. What the loop adds has the dtypes it was saved in.
    Tensors alone are saved: what else a module keeps by `get_extra_state` stays as it is in the backbone, and so do
    its modes and `requires_grad`: call `freeze_backbone()` again where the loop had it.

    Args:
        folder: What `net.save` wrote.
        backbone: The network to put the loop around.
        adapter: The adapters' classes or factories when they were not named ones: code is never read from a file.
        context: The context when it had a `map` of its own, for the same reason.
        solver: Another solver than it was saved with; needed where that was one of the caller's own.
        gradient: Another gradient rule, likewise.
        halting: Another stopping rule, likewise.
        example: A batch such as the loop was built with, of which no values are saved; None makes one up (floats are
            standard normal, whole numbers the largest one seen).

    Returns:
        The loop, in the backbone's train or eval mode.

    Raises:
        FileNotFoundError: A file of the save is missing.
        ValueError: A file is damaged, or the backbone differs; the message names what differs. Or the backbone fails on
            an example that is made up, as one that looks for a certain token.
        TypeError: The backbone is no module.
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

    given: object = backbone
    if not isinstance(given, nn.Module):
        got = f"the class {given.__name__}" if isinstance(given, type) else type(given).__name__
        raise TypeError(f"load needs the network to put the loop around, an nn.Module, got {got}.")
    backbone = unwrap_compiled(backbone)  # as building a loop does, so that names are those that were saved
    source = Path(folder)
    manifest = read_manifest(source)
    saved, loop = manifest["backbone"], manifest["loop"]
    check_backbone(backbone, saved["tensors"], _modules(loop), digests=not saved["included"])
    added = _read_tensors(source / ADDED, manifest["added"])
    weights = _read_tensors(source / BACKBONE, saved["tensors"]) if saved["included"] else None
    if example is None:
        call = made_up(loop["example"], backbone)
        example = call.kwargs or call.args
    net = ContextLoop(
        backbone,
        loop["sites"],
        example,
        _adapter_choice(loop["adapter"], adapter),
        _context(loop, context),
        loop["steps"],
        loop["alpha"],
        loop["schedule"],
        solver=choose_option("solver", loop["solver"], solver),
        gradient=choose_option("gradient", loop["gradient"], gradient),
        halting=choose_option("halting", loop["halting"], halting),  # type: ignore[arg-type]
        raise_on=loop["raise_on"],
        step_norm=loop["step_norm"],
        channel_dim=loop["channel_dim"],
        output=loop["output"],
        cut="auto" if loop["cut"] == "traced" else loop["cut"],  # which older saves say of what "auto" had found
        allow_dead=True,
    )
    _take_dtypes(net, added)
    advice = "Pass the adapter and the context that it was saved with."
    refuse("the loop", differences(manifest["added"], inventory(added_state(net)), digests=False), advice)
    for name in ADDED_PARTS:  # part by part: the backbone's own loaders may want a whole state
        own = {key.removeprefix(f"{name}."): value for key, value in added.items() if key.startswith(f"{name}.")}
        net.get_submodule(name).load_state_dict(own, strict=False)  # of its own no tensor is missing
    if weights is not None:  # last, so that whatever is refused leaves the backbone as it was
        backbone.load_state_dict(weights, strict=False)
    if loop["contractive"] is not None:
        from torchcbl.theory.contractive import make_contractive

        make_contractive(net, loop["contractive"])
    return net


@torch.inference_mode(False)  # as a loop is built
def _take_dtypes(net: ContextLoop, saved: Mapping[str, Tensor]) -> None:
    """Convert what a loop adds, which was built to fit its backbone, to the floating-point dtypes it was saved in."""
    for name, value in net.state_dict(keep_vars=True).items():
        if name in saved and value.is_floating_point() and saved[name].is_floating_point():
            value.data = value.data.to(saved[name].dtype)


def _check_whole(net: ContextLoop) -> None:
    for name, value in net.state_dict().items():
        if hasattr(value, "full_tensor"):  # a DTensor, whose class takes half a second to import
            raise ValueError(
                f"'{name}' is sharded over processes: gather the whole with torch.distributed.checkpoint.state_dict."
                "get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, cpu_offload=True)) on all of "
                "them, load it into a loop built in the same way, and save that on rank 0."
            )


def added_state(net: ContextLoop) -> dict[str, Tensor]:
    """All that the loop adds to the backbone: adapters, context, per-step statistics."""
    return {name: value for name, value in _tensors(net).items() if not name.startswith("backbone.")}


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return a module's state without what `get_extra_state` adds that is no tensor."""
    return {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}


def _weights(module: nn.Module) -> dict[str, object]:
    """Return a module's tensors and what quantised layers have in their place."""
    return {name: v for name, v in module.state_dict().items() if isinstance(v, Tensor) or is_packed(name, v)}


def _pack(state: Mapping[str, object]) -> bytes:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor) and not is_wrapper(value)}
    for name, value in state.items():
        if name not in tensors:
            raise ValueError(
                f"'{name}' is a {type(value).__name__}, which safetensors cannot hold: save without include_backbone, "
                "and the backbone by its own means."
            )
    # clones, because safetensors refuses tensors that share memory (tied weights)
    packed: bytes = _safetensors().save({k: value.detach().cpu().contiguous().clone() for k, value in tensors.items()})
    return packed


def _safetensors() -> ModuleType:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "saving and loading need safetensors, which is not installed: pip install 'torchcbl[storage]'."
        ) from error
    return importlib.import_module("safetensors.torch")


def _adapter_choice(saved: object, given: AdapterChoice | None) -> AdapterChoice:
    if given is not None:
        return given
    if saved == CUSTOM or (isinstance(saved, dict) and CUSTOM in saved.values()):
        raise ValueError(
            "the loop was saved with adapters of the caller's own, whose code is not in the file: pass the same class "
            "or factory as load(..., adapter=...)."
        )
    assert isinstance(saved, (str, dict))
    return restore_adapters(saved)


def _context(saved: LoopEntry, given: Context | None) -> Context:
    if given is not None:
        return given
    if saved["context"]["map"] is not None:
        raise ValueError(
            "the loop was saved with a context map of the caller's own, whose code is not in the file: pass the same "
            "Context as load(..., context=...)."
        )
    return saved_context(saved)


def _read_tensors(path: Path, expected: Inventory) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the save is not whole; save the loop again.")
    try:
        tensors: dict[str, Tensor] = _safetensors().load(path.read_bytes())
    except ImportError:
        raise
    except Exception as error:  # safetensors has an exception class of its own for each kind of damage
        raise ValueError(f"{path} is damaged ({error}): save the loop again.") from error
    refuse(str(path), differences(expected, inventory(tensors), digests=True), "Save the loop again.")
    return tensors


def _modules(loop: LoopEntry) -> dict[str, str]:
    """Say which of the backbone's modules a saved loop needs, and for what."""
    roles = dict.fromkeys(loop["sites"], "site")
    source = saved_context(loop).module_name
    if source is not None:
        roles[source] = "site and context source" if source in roles else "context source"
    return roles
