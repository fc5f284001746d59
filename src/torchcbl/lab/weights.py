"""A run's weights on disk: loops as the library saves them where it can rebuild them, other models as plain tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TypeGuard

import safetensors.torch
import torch
from torch import nn

import torchcbl as cbl
from torchcbl.adapters import CUSTOM
from torchcbl.files import write_atomically

PLAIN = "model.safetensors"


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write a model's weights into a folder, each file whole or not at all; the model is moved to the CPU."""
    model.to(device="cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if _rebuilds_itself(model):
        model.save(str(folder), include_backbone=True)
    else:
        write_atomically(folder / PLAIN, safetensors.torch.save(model.state_dict()))


def load_weights(model: nn.Module, folder: Path) -> nn.Module:
    """Return the model with the weights of a folder; a loop of the library's own is another object.

    Raises:
        FileNotFoundError: There are none.
        ValueError: They are damaged, or of another model.
    """
    if _rebuilds_itself(model):
        return cbl.load(folder, model.backbone)
    path = folder / PLAIN
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: delete the run's record and repeat it.")
    try:
        model.load_state_dict(safetensors.torch.load(path.read_bytes()))
    except Exception as error:  # safetensors has an exception class of its own for each kind of damage
        raise ValueError(
            f"{path} does not fit or is damaged ({error}): delete the run's record and repeat it."
        ) from error
    return model


def _rebuilds_itself(model: nn.Module) -> TypeGuard[cbl.ContextLoop]:
    if type(model) is not cbl.ContextLoop:
        return False
    return not model.config.custom_context and model.config.adapter != CUSTOM
