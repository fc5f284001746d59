"""What a study's records say, worked out once for the tables, the figures and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from torchcbl.lab.derived import with_derived
from torchcbl.lab.recipe import Recipe, differences
from torchcbl.lab.records import Record
from torchcbl.lab.report.families import BASELINES, baseline_of, compare_arms, family, treatments
from torchcbl.lab.report.listing import count, listed
from torchcbl.lab.report.progress import planned_runs, progress
from torchcbl.lab.report.roles import is_loop, same_network, told
from torchcbl.lab.report.verdict import verdict
from torchcbl.lab.sources import SOURCES, Source
from torchcbl.lab.statistics import Comparison, Summary, at_least, summarise


@dataclass(frozen=True)
class Findings:
    """Hold a study's recipe and records, and answer what the report asks of them.

    Args:
        recipe: What was asked for.
        records: What was finished; at least one.
        folder: Where the study lies; there is more to be read where its measures were taken.

    Raises:
        ValueError: There are no records, two of the same run, or one that was made with another recipe.
    """

    recipe: Recipe
    records: tuple[Record, ...]
    folder: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "records", with_derived(self.records, self.recipe.arms))
        if not self.records:
            raise ValueError("no finished run to report: run `torchcbl compare` until one run has finished")
        names = [record.name for record in self.records]
        for record in self.records:
            if names.count(record.name) > 1:
                raise ValueError(f"two records of the run {record.name}, expected one: delete one of the files")
            _check_recipe(record, self.recipe)

    @cached_property
    def arms(self) -> tuple[str, ...]:
        """Arms with a finished run, in the recipe's order."""
        finished = {record.arm for record in self.records}
        known = [arm for arm in self.recipe.arms if arm in finished]
        return (*known, *sorted(finished - set(known)))

    @cached_property
    def seeds(self) -> tuple[int, ...]:
        """Seeds with a finished run of any arm, in order."""
        return tuple(sorted({record.seed for record in self.records}))

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """Runs that the recipe asks for and that have no record."""
        finished = {record.name for record in self.records}
        return tuple(name for name in planned_runs(self.recipe) if name not in finished)

    def runs(self, arm: str) -> list[Record]:
        """Return the finished runs of an arm, ordered by seed."""
        return sorted((record for record in self.records if record.arm == arm), key=lambda record: record.seed)

    def scores(self, arm: str) -> dict[int, float]:
        """Return the test accuracy of the answer y_T by seed, in per cent."""
        return {record.seed: 100 * record.test.accuracy[-1] for record in self.runs(arm)}

    @cached_property
    def summaries(self) -> dict[str, Summary]:
        """Summary of every arm's test accuracies, in per cent."""
        return {arm: summarise(list(self.scores(arm).values())) for arm in self.arms}

    @property
    def baseline(self) -> str:
        """The plain network that the others are held against."""
        return baseline_of({*self.recipe.arms, *self.arms})

    @cached_property
    def families(self) -> dict[str, list[Comparison]]:
        """The treatments that have finished runs, each against all of its controls."""
        runs = {arm: self.runs(arm) for arm in self.arms}
        return {
            treatment: [self._as_one_of_the_loops(one) for one in family(treatment, runs, self.recipe)]
            for treatment in treatments(self.arms)
        }

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """Every other arm against the baseline, in points of test accuracy.

        A treatment's is that of its family, so that it is corrected, and shown or not, in one way; the others are a
        family of their own. A loop's is corrected for no fewer tests than there are loops on its network.
        """
        if self.baseline not in self.arms:
            return []
        own = {one.treatment: one for tests in self.families.values() for one in tests if one.baseline == self.baseline}
        planned = [arm for arm in self.recipe.arms if arm not in {*own, *treatments(self.recipe.arms)}]
        others = {arm: self.scores(arm) for arm in self.arms if arm not in own}
        rest = map(self._as_one_of_the_loops, compare_arms(others, self.baseline, planned))
        found = own | {one.treatment: one for one in rest}
        return [found[arm] for arm in self.arms if arm in found]

    def _as_one_of_the_loops(self, one: Comparison) -> Comparison:
        """Count the loops on a network in the test of each against the plain one: any may beat it by chance."""
        if one.baseline not in BASELINES or not is_loop(one.treatment):
            return one
        arms = {*self.recipe.arms, *self.arms}
        return at_least(one, sum(is_loop(arm) and same_network(arm, one.treatment) for arm in arms))

    @property
    def label(self) -> str:
        """What this is: data, seeds, epochs, and how that falls short of the paper's protocol."""
        counts = sorted(len(self.runs(arm)) for arm in self.recipe.trained_arms)
        fewest, most, epochs = counts[0], counts[-1], self.recipe.epochs
        seeds = f"{fewest} to {count(most, 'seed')} an arm" if fewest < most else count(most, "seed")
        augmented = ", with random crop and flip" if self.recipe.augment else ""
        label = f"{self.recipe.name}: {seeds}, {count(epochs, 'epoch')}{augmented}"
        protocol, note = self.source.protocol, self.source.note
        if protocol is not None and (fewest < protocol[0] or epochs < protocol[1]):
            label += f" (the paper's protocol: {count(protocol[0], 'seed')}, {count(protocol[1], 'epoch')})"
        if note:
            label += f" {note}" if note.startswith("on ") else f"; {note}"
        return label

    @property
    def has_confusion(self) -> bool:
        """Whether every record has it; those of earlier versions have not."""
        return all(record.test.confusion is not None for record in self.records)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes; numbers where the records have no names."""
        record = self.records[0]
        size = len(record.test.confusion[0]) if record.test.confusion else 0
        return record.classes or tuple(map(str, range(size)))

    @property
    def source(self) -> Source:
        """What the data are."""
        return SOURCES[self.recipe.data]

    @property
    def progress(self) -> str:
        """How much of the study is there, and which runs are missing."""
        return progress(self.recipe, self.missing)

    @property
    def verdicts(self) -> list[str]:
        """One sentence per comparison, or one that says why there is none, and which runs diverged."""
        diverged = tuple(run.name for run in self.records if not math.isfinite(run.test.loss[-1]))
        if self.baseline not in self.arms:
            return [f"No finished run of the arm {self.baseline}: nothing to compare with."]
        if not self.comparisons:
            return [f"No finished run of another arm than {self.baseline}: nothing to compare it with."]
        said = [verdict(one, self.recipe.seeds) + told(one.treatment) for one in self.comparisons]
        return [*said, f"Diverged, to a loss that is no finite number: {listed(diverged)}."] if diverged else said

    @property
    def costs(self) -> list[str]:
        """One sentence per arm on what it costs beside the baseline."""
        if self.baseline not in self.arms:
            return []
        return [
            f"{arm} takes {self.relative(arm, 'inference'):.2f} times the FLOPs per {self.source.noun} and "
            f"{self.relative(arm, 'training'):.2f} times the training time of {self.baseline}."
            for arm in self.arms
            if arm != self.baseline
        ]

    def relative(self, arm: str, what: str) -> float:
        """Return the arm's cost over the baseline's: `inference` FLOPs or `training` seconds; else NaN."""
        if self.baseline not in self.arms:
            return math.nan
        cost, baseline = (self._cost(name, what) for name in (arm, self.baseline))
        return cost / baseline if baseline > 0 else math.nan

    def _cost(self, arm: str, what: str) -> float:
        runs = self.runs(arm)
        values = [run.seconds[what] if what == "training" else run.flops[what] for run in runs]
        return math.fsum(values) / len(values)

    def distinct(self, what: str) -> dict[str, str]:
        """Return the values of `versions` or `machine` by key; where runs differ, all of them."""
        mappings: list[Mapping[str, object]] = [getattr(record, what) for record in self.records]
        keys = dict.fromkeys(key for mapping in mappings for key in mapping)
        return {
            key: "; ".join(dict.fromkeys(str(mapping[key]) for mapping in mappings if key in mapping)) for key in keys
        }


def findings_of(records: Sequence[Record]) -> Findings:
    """Take the findings of records alone: the recipe is the one that they carry.

    Raises:
        ValueError: There are no records, two of the same run, or of different recipes.
    """
    if not records:
        raise ValueError("no finished run to report: run `torchcbl compare` until one run has finished")
    largest = max(records, key=lambda record: cast("int", record.recipe["seeds"]))
    return Findings(Recipe(**cast("dict[str, Any]", largest.recipe)), tuple(records))


def _check_recipe(record: Record, recipe: Recipe) -> None:
    differing = differences(record.recipe, recipe)
    if differing:
        raise ValueError(
            f"record {record.name} was made with another recipe than the study's: {'; '.join(differing)}. Runs of two "
            "recipes cannot be compared; move it away and run `torchcbl compare` again"
        )
