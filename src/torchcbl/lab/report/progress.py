"""How much of a study is there."""

from __future__ import annotations

from collections.abc import Sequence

from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import run_name
from torchcbl.lab.report.listing import count, listed


def planned_runs(recipe: Recipe) -> list[str]:
    """Name the runs that a recipe asks for, arm by arm."""
    return [run_name(arm, seed) for arm in recipe.trained_arms for seed in range(recipe.seeds)]


def progress(recipe: Recipe, missing: Sequence[str]) -> str:
    """Say how much of a study is there, and which of its runs are missing."""
    planned = len(planned_runs(recipe))
    if not missing:
        return f"Complete: all {count(planned, 'run')} finished."
    return (
        f"Partial: {planned - len(missing)} of {planned} runs finished, and its tests are not corrected for looking "
        f"before the end; missing: {listed(missing)}."
    )
