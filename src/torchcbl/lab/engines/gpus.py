"""Which GPUs of this machine the processes of a run see."""

from __future__ import annotations

import os
from collections.abc import Sequence


def visible_gpus() -> list[str]:
    """Name this machine's GPUs as CUDA_VISIBLE_DEVICES does, leaving out those that it hides; none without any."""
    import torch

    count = torch.cuda.device_count()
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] if named else [str(number) for number in range(count)]


def environment_of(gpus: Sequence[str], devices: int, place: int) -> dict[str, str]:
    """Say what the processes of a run are to find in their environment, so that runs side by side share the GPUs out.

    Args:
        gpus: As `visible_gpus` names them.
        devices: How many one run is spread over, >= 1.
        place: Which of the runs side by side this is, from 0.

    Returns:
        CUDA_VISIBLE_DEVICES; nothing where there are fewer GPUs than one run asks for.

    Example:
        >>> [environment_of(["0", "1", "2", "3"], 1, place)["CUDA_VISIBLE_DEVICES"] for place in range(5)]
        ['0', '1', '2', '3', '0']
        >>> [environment_of(["0", "1", "2", "3"], 2, place)["CUDA_VISIBLE_DEVICES"] for place in range(3)]
        ['0,1', '2,3', '0,1']
        >>> environment_of([], 1, 0)
        {}
    """
    groups = len(gpus) // devices
    if not groups:
        return {}
    first = place % groups * devices
    return {"CUDA_VISIBLE_DEVICES": ",".join(gpus[first : first + devices])}
