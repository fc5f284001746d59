"""Everything that was measured of a study, and how its pages ask for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from torchcbl.lab.measures.kinds import find_kind
from torchcbl.lab.measures.store import Result
from torchcbl.lab.recipe import DERIVED_ARMS, Recipe, read_recipe
from torchcbl.lab.records import Record, read_records

Found = TypeVar("Found", bound=Result)


@dataclass(frozen=True)
class Measures:
    """What was measured of a study.

    Args:
        folder: The study's.
        recipe: Its recipe.
        records: Of its finished runs, by name.
        found: Results by kind and run; those of runs that were repeated since are left out.
        unfit: Kinds that do not fit the data, and why, as far as was asked.
    """

    folder: Path
    recipe: Recipe
    records: Mapping[str, Record]
    found: Mapping[str, Mapping[str, Result]]
    unfit: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, kinds: Sequence[str], unfit: Mapping[str, str] | None = None) -> Measures:
        """Read what is there.

        Raises:
            ValueError: A record or a result is damaged.
        """
        records = {record.name: record for record in read_records(folder)}
        found: dict[str, dict[str, Result]] = {kind: {} for kind in kinds}
        for kind in kinds:
            for record in records.values():
                result = find_kind(kind).read(folder, record)
                if result is not None and result.about.finished == record.finished:
                    found[kind][record.name] = result
        return cls(folder, read_recipe(folder / "recipe.toml"), records, found, unfit or {})

    def of(self, kind: str, result: type[Found]) -> dict[str, list[Found]]:
        """Return the results of a kind by arm in the recipe's order, each arm's by seed."""
        by_arm: dict[str, list[Found]] = {}
        for arm in self.recipe.trained_arms:
            runs = [one for one in self.found.get(kind, {}).values() if one.about.arm == arm]
            if runs:
                by_arm[arm] = [one for one in sorted(runs, key=lambda one: one.about.seed) if isinstance(one, result)]
        return by_arm

    def rows(self, by_arm: Mapping[str, Sequence[Found]], depth: Callable[[Found], int]) -> list[Row[Found]]:
        """List what tables have a row for: every step of every arm, and derived arms at their step.

        Args:
            by_arm: As `of` returns it.
            depth: Says how many steps a result has.
        """
        rows = []
        for arm in self.recipe.arms:
            source, step = DERIVED_ARMS.get(arm, (arm, None))
            runs = by_arm.get(source, ())
            if runs:
                steps = range(min(depth(run) for run in runs)) if step is None else (step,)
                rows += [Row(arm, one, tuple(runs), last=one == steps[-1]) for one in steps]
        return rows


@dataclass(frozen=True)
class Row(Generic[Found]):
    """One step of one arm.

    Args:
        arm: The arm.
        step: tau.
        runs: Its runs, or those that it is read off, by seed.
        last: Whether it is the arm's answer.
    """

    arm: str
    step: int
    runs: tuple[Found, ...]
    last: bool

    @property
    def label(self) -> str:
        """Its name in a table."""
        return f"{self.arm}, τ = {self.step}"

    def values(self, read: Callable[[Found, int], float]) -> dict[int, float]:
        """Read one number of every run, by seed."""
        return {run.about.seed: read(run, self.step) for run in self.runs}
