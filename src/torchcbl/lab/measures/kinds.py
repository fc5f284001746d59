"""Every kind of measure by name."""

from __future__ import annotations

import difflib

from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.measures.ambiguity import AmbiguityMeasure
from torchcbl.lab.measures.attacks import AttackMeasure
from torchcbl.lab.measures.base import Measure
from torchcbl.lab.measures.clean import CleanMeasure
from torchcbl.lab.measures.graded import CorruptionMeasure, OcclusionMeasure
from torchcbl.lab.measures.noise import NoiseMeasure

_ALL: tuple[Measure, ...] = (
    CleanMeasure(),
    CorruptionMeasure(),
    OcclusionMeasure(),
    AttackMeasure(),
    AmbiguityMeasure(),
    NoiseMeasure(),
)
KINDS = {kind.name: kind for kind in _ALL}
assert tuple(KINDS) == KIND_NAMES


def find_kind(name: str) -> Measure:
    """Look a kind up by name.

    Raises:
        ValueError: There is no such kind; the message names the closest.
    """
    if name in KINDS:
        return KINDS[name]
    close = difflib.get_close_matches(name, KINDS, n=1)
    hint = f": did you mean '{close[0]}'?" if close else "."
    raise ValueError(f"unknown kind of measure '{name}'{hint} Kinds: {', '.join(KINDS)}.")
