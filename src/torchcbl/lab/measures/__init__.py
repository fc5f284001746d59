"""Measures of finished runs: what is asked of each arm at each step tau, beside its accuracy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["KIND_NAMES", "read_correct"]

KIND_NAMES = ("clean", "corruptions", "occlusion", "attacks", "ambiguity", "noise")
"""Kinds of measures, in the order in which they are made and shown."""


def read_correct(folder: Path, run: str) -> NDArray[np.bool_]:
    """Read which test samples a run had right at every step, so that arms can be paired by image.

    Args:
        folder: The study's.
        run: `<arm>-seed<k>`; of a derived arm, the step of the run that it is read off.

    Returns:
        (T + 1, N) bool, in the order of the test part; (1, N) without a loop.

    Raises:
        FileNotFoundError: It was not measured, or the run was repeated since.
        ValueError: The file is damaged.
    """
    from torchcbl.lab.measures.clean import correct_of

    return correct_of(folder, run)
