"""Checkpoints that survive a power cut, and are read without unpickling code."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from torchcbl.files import write_atomically


class DurableCheckpointIO(TorchCheckpointIO):
    """Save a Lightning checkpoint whole or not at all; load tensors and plain values only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object | None = None
    ) -> None:
        """Write the checkpoint to `path` through a temporary file that has reached the disk."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_atomically(Path(path), buffer.getvalue())

    def load_checkpoint(
        self,
        path: str | Path,
        map_location: Callable[..., object] | None = None,
        weights_only: bool | None = True,
    ) -> dict[str, Any]:
        """Read a checkpoint onto the CPU; Lightning moves it to its device."""
        loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return loaded


def usable_checkpoint(path: Path) -> Path | None:
    """Return `path` if a whole checkpoint lies there, else `None`; one that is damaged is warned about."""
    if not path.exists():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            flawed = archive.testzip()  # torch.load does not compare the checksums
        if flawed is None:
            torch.load(path, map_location="cpu", weights_only=True)
            return path
        reason = f"{flawed} fails its checksum"
    except (OSError, EOFError, RuntimeError, ValueError, zipfile.BadZipFile, UnpicklingError) as error:
        reason = str(error)
    warnings.warn(f"checkpoint {path} is damaged ({reason}): this run starts anew.", RuntimeWarning, stacklevel=2)
    return None
