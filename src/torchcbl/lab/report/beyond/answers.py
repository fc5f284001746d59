"""What a run answered to every test sample, where that was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_answers(folder: Path, run: str) -> NDArray[np.bool_] | None:
    """Read which test samples a run had right at every step.

    Args:
        folder: The study's.
        run: The run's name.

    Returns:
        (T + 1, N) bool; None where it was not measured, or the run was repeated since.

    Raises:
        ValueError: The file is damaged.
    """
    from torchcbl.lab.measures import read_correct

    try:
        return read_correct(folder, run)
    except FileNotFoundError:
        return None
