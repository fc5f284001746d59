"""Saving and loading a front end with its words: tensors in safetensors, the rest in JSON, nothing pickled."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchcbl.files import write_atomically
from torchcbl.lab.sound.front_end import MelFrontEnd
from torchcbl.lab.sound.mel import MelSettings
from torchcbl.sharing.fingerprint import differences, inventory, refuse

TENSORS, SETTINGS = "front_end.safetensors", "front_end.json"
FORMAT = 1


def save_front_end(folder: Path, front_end: MelFrontEnd, words: tuple[str, ...]) -> None:
    """Write `front_end.safetensors` and `front_end.json`, each whole or not at all.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be written.
    """
    from safetensors.torch import save

    state = {name: value.detach().cpu().contiguous().clone() for name, value in front_end.state_dict().items()}
    content = {
        "format": FORMAT,
        "settings": asdict(front_end.settings),
        "words": list(words),
        "tensors": inventory(state),
    }
    write_atomically(folder / TENSORS, save(state))
    write_atomically(folder / SETTINGS, json.dumps(content, indent=1) + "\n")


def load_front_end(folder: Path) -> tuple[MelFrontEnd, tuple[str, ...]]:
    """Read what `save_front_end` wrote; it may come from a stranger, so all of it is checked.

    Returns:
        The front end, bit for bit as it was saved, and the words. The filters are those of the file.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, of another format, or does not belong to the other.
        ImportError: safetensors is not installed.
    """
    content = _read_settings(folder / SETTINGS)
    tensors = _read_tensors(folder / TENSORS)
    advice = "Save the front end again."
    refuse(str(folder / TENSORS), differences(content["tensors"], inventory(tensors), digests=True), advice)
    try:
        settings = MelSettings(**content["settings"])
        front_end = MelFrontEnd(**asdict(settings), filters=tensors["filters"])
        expected = inventory(front_end.state_dict())
        refuse("the front end", differences(expected, inventory(tensors), digests=False), advice)
        _check_values(tensors)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{folder / SETTINGS} is damaged ({error}): save the front end again.") from error
    front_end.load_state_dict(tensors)
    return front_end, tuple(content["words"])


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: pass the folder that save_front_end(folder) wrote.")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = content["format"]
        if version == FORMAT:
            _check_settings(content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the front end again.") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version}, expected {FORMAT}: use the torchcbl that wrote it.")
    return content


def _check_settings(content: dict[str, Any]) -> None:
    if not isinstance(content["settings"], dict):
        raise TypeError("settings must be an object")
    words = content["words"]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise TypeError("words must be a list of strings")
    rows = content["tensors"]
    if not isinstance(rows, dict) or not all(isinstance(row, list) and len(row) == 3 for row in rows.values()):
        raise TypeError("tensors must list dtype, shape and digest of each")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the save is not whole; save the front end again.")
    try:
        tensors: dict[str, Tensor] = load(path.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): save the front end again.") from error
    return tensors


def _check_values(tensors: dict[str, Tensor]) -> None:
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"'{name}' holds NaN or infinity")
    if not bool((tensors["std"] > 0).all()):
        raise ValueError("'std' is not positive in every bin")
