"""What a run answered to every test image, where that was measured."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def read_answers(folder: Path, run: str) -> NDArray[np.bool_] | None:
    """Read which images a run had right at every step.

    Args:
        folder: The study's.
        run: The run's name.

    Returns:
        (T + 1, N) bool; None where it was not measured.
    """
    try:
        measures = importlib.import_module("torchcbl.lab.measures")
        right: NDArray[np.bool_] = measures.read_correct(folder, run)
    except (ImportError, FileNotFoundError):
        return None
    return right
