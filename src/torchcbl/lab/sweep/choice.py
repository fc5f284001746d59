"""The choice among settings: the best, the cheapest that is as good, and how much of its score is luck."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from torchcbl.lab.statistics import Comparison, compare, holm
from torchcbl.lab.sweep.grid import shown
from torchcbl.lab.sweep.results import Candidate, Results

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Choice:
    """What a sweep comes to.

    Args:
        ranking: Complete settings, best first: by mean score, ties by FLOPs of the answer, then of training, then by
            their order in the sweep.
        frugal: The cheapest setting whose mean is within one standard error of the best's (the rule of Breiman et al.,
            Classification and Regression Trees, 1984); None with one seed, which gives no error.
        left_out: Mean score of the setting that is best on the other seeds, on the seed that is left out: without what
            the best owes to these seeds, but not to these validation samples. None with one seed.
        against: The paired comparison of each of `ranking` with `standard`, p-values corrected by Holm's method for
            their number; None where `standard` shares no seed with it.
    """

    ranking: tuple[Candidate, ...]
    frugal: Candidate | None
    left_out: float | None
    against: tuple[Comparison | None, ...]

    @property
    def best(self) -> Candidate:
        """The chosen setting."""
        return self.ranking[0]


@dataclass(frozen=True)
class Level:
    """One value of a recipe key, over all settings that have it.

    Args:
        key: The key.
        value: The value.
        means: Mean scores of these settings.
    """

    key: str
    value: object
    means: tuple[float, ...]

    @property
    def label(self) -> str:
        """The value as text."""
        return shown(self.value)

    @property
    def mean(self) -> float:
        """The marginal mean: over the other keys' values."""
        return fmean(self.means)


def choose(results: Results) -> Choice:
    """Choose among the complete settings.

    Raises:
        ValueError: No setting is complete.
    """
    if not results.complete:
        raise ValueError(
            f"no setting has all {len(results.seeds)} runs finished: nothing to choose from. Run the same "
            "`torchcbl sweep` again, or see the runs' output.log."
        )
    ranking = rank(results.complete)
    return Choice(ranking, frugal(ranking), left_out(results.complete), _against(results, ranking))


def rank(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Sort candidates, best first; equal ones by cost."""
    return tuple(sorted(candidates, key=lambda one: (-one.worth, one.cost)))


def frugal(ranking: Sequence[Candidate]) -> Candidate | None:
    """Find the cheapest within one standard error of the first; None where that has none."""
    error = ranking[0].standard_error
    if error is None:
        return None
    near = [one for one in ranking if one.worth >= ranking[0].worth - error - _ROUNDING]
    return min(near, key=lambda one: one.cost)


def left_out(candidates: Sequence[Candidate]) -> float | None:
    """Choose on all seeds but one and score on that one, for each seed in turn; the mean of the scores.

    Args:
        candidates: With the same seeds each.
    """
    seeds = list(candidates[0].scores)
    if len(seeds) < 2:
        return None
    by_setting = {one.setting: one for one in candidates}
    chosen = {seed: rank([_without(one, seed) for one in candidates])[0].setting for seed in seeds}
    return fmean(by_setting[setting].scores[seed] for seed, setting in chosen.items())


def levels(candidates: Sequence[Candidate]) -> tuple[Level, ...]:
    """Sort settings by the value of each key in turn, values from small to large where they are numbers."""
    found = []
    for key in candidates[0].setting.keys:
        values = list(dict.fromkeys(dict(one.setting.values)[key] for one in candidates))
        if all(isinstance(value, (int, float)) for value in values):
            values.sort()
        found += [
            Level(key, value, tuple(one.mean for one in candidates if dict(one.setting.values)[key] == value))
            for value in values
        ]
    return tuple(found)


def _without(candidate: Candidate, seed: int) -> Candidate:
    return replace(candidate, records=tuple(record for record in candidate.records if record.seed != seed))


def _against(results: Results, ranking: Sequence[Candidate]) -> tuple[Comparison | None, ...]:
    found = [_compared(one, results.reference(one)) for one in ranking]
    p_values = [one.t_test.p if one is not None and one.t_test else 1.0 for one in found]
    return tuple(
        one if one is None or one.t_test is None else replace(one, num_comparisons=len(ranking), p_holm=p)
        for one, p in zip(found, holm(p_values), strict=True)
    )


def _compared(candidate: Candidate, reference: Candidate | None) -> Comparison | None:
    if reference is None:
        return None
    found = compare(candidate.scores, reference.scores, names=(candidate.setting.label, reference.arm))
    return found if found.n else None
