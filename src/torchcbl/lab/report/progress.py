"""How much of a study is there."""

from __future__ import annotations

from collections.abc import Container, Sequence

from torchcbl.lab.recipe import Recipe
from torchcbl.lab.records import run_name
from torchcbl.lab.report.listing import count, listed


def planned_runs(recipe: Recipe) -> list[str]:
    """Name the runs that a recipe asks for, arm by arm."""
    return [run_name(arm, seed) for arm in recipe.trained_arms for seed in range(recipe.seeds)]


def lacking(recipe: Recipe, done: Container[str]) -> str:
    """Say how much of a study is there, given the names of the runs that are; nothing where it is complete."""
    missing = [name for name in planned_runs(recipe) if name not in done]
    return progress(recipe, missing) if missing else ""


def lead(done: int, planned: int) -> str:
    """Say that what so many seeds show is a lead while others are planned; nothing where none is."""
    return f"; at {done} of {planned} seeds it is a lead" if done < planned else ""


def progress(recipe: Recipe, missing: Sequence[str]) -> str:
    """Say how much of a study is there, and which of its runs are missing."""
    planned = len(planned_runs(recipe))
    if not missing:
        return f"Complete: all {count(planned, 'run')} finished."
    return (
        f"Partial: {planned - len(missing)} of {planned} runs finished, and its tests are not corrected for looking "
        f"before the end; missing: {listed(missing)}."
    )
