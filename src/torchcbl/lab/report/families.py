"""Which arms are asked about and which comparisons are made together: a loop against all of its controls."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torchcbl.lab.recipe import DERIVED_ARMS, Recipe
from torchcbl.lab.records import Record
from torchcbl.lab.report.roles import has_dropout, is_loop, is_oracle, same_network, trains_first
from torchcbl.lab.statistics import Comparison, compare_all, compare_with_each

BASELINE = "standard"
BASELINES = (BASELINE, "as-released-standard")
PREFERRED = "cbl"
OWN_FIRST_STEP = "loop-free"


def baseline_of(arms: Collection[str]) -> str:
    """Name the plain network that the other arms are held against: the first of `BASELINES` that is there.

    Example:
        >>> baseline_of(["as-released-cbl", "as-released-standard"]), baseline_of(["cbl"])
        ('as-released-standard', 'standard')
    """
    return next((arm for arm in BASELINES if arm in arms), BASELINE)


def treatments(arms: Sequence[str]) -> list[str]:
    """Choose the arms that are asked about: `cbl`, or else the first loop, and all loops of the released code.

    Example:
        >>> treatments(["standard", "cbl-gate", "cbl", "as-released-cbl"])
        ['cbl', 'as-released-cbl']
    """
    loops = [arm for arm in arms if is_loop(arm)]
    own = [arm for arm in loops if same_network(arm, PREFERRED)]
    released = [arm for arm in loops if arm not in own]
    return [*([PREFERRED] if PREFERRED in own else own[:1]), *released]


def family(treatment: str, runs: Mapping[str, Sequence[Record]], recipe: Recipe) -> list[Comparison]:
    """Compare a treatment with each of its controls, as one family of tests.

    Args:
        treatment: The arm asked about.
        runs: The finished runs of every arm.
        recipe: Of the study: controls without runs yet count in the correction.

    Returns:
        Treatment minus control in points of test accuracy; its own step 0 is a control where it has steps and y_0 was
        trained.
    """
    controls = [arm for arm in dict.fromkeys((*recipe.arms, *runs)) if is_control(arm, treatment)]
    against = {arm: _scores(runs.get(arm, ()), -1) for arm in controls}
    steps = all(len(run.test.accuracy) > 1 for run in runs[treatment])
    if steps and trains_first(treatment, recipe):
        against[own_first_step(treatment)] = _scores(runs[treatment], 0)
    return compare_with_each(treatment, _scores(runs[treatment], -1), against, planned=len(against))


def is_control(name: str, treatment: str) -> bool:
    """Say whether a loop can be held against an arm: one on its network, no loop, not told the labels, and trained.

    Against a loop of the laboratory's own that is not `cbl` stands the plain network alone: adapter, loss and size of
    the other controls are those of `cbl`. A loop of the released code that has dropout is not held against the
    released network without: between those two both differ.

    Example:
        >>> [is_control(name, "cbl-gate") for name in ("standard", "no-context", "wider-params")]
        [True, False, False]
        >>> is_control("as-released-standard-no-dropout", "as-released-cbl")
        True
        >>> is_control("as-released-standard-no-dropout", "as-released-cbl-dropout")
        False
    """
    if not same_network(name, treatment) or is_loop(name) or is_oracle(name) or name in DERIVED_ARMS:
        return False
    if same_network(treatment, PREFERRED) and treatment != PREFERRED:
        return name == BASELINE
    return has_dropout(name) or not has_dropout(treatment)


def compare_arms(scores: Mapping[str, Mapping[int, float]], baseline: str, planned: Sequence[str]) -> list[Comparison]:
    """Compare arms with the baseline, as one family of tests; those that are told the labels stand outside it.

    Args:
        scores: Score by seed for every arm, in points.
        baseline: Name of the arm that the others are held against.
        planned: Arms of the study; those without scores yet count in the correction.

    Returns:
        One comparison per other arm, in the order of `scores`.
    """
    oracles = {arm for arm in {*scores, *planned} if is_oracle(arm)}
    rivals = {arm: found for arm, found in scores.items() if arm not in oracles}
    bounds = {arm: found for arm, found in scores.items() if arm in {*oracles, baseline}}
    tests = len({*scores, *planned} - oracles - {baseline})
    compared = [*compare_all(rivals, baseline, planned=tests), *compare_all(bounds, baseline)]
    return sorted(compared, key=lambda one: list(scores).index(one.treatment))


def own_first_step(treatment: str) -> str:
    """Name the treatment's own step 0 as a control."""
    return OWN_FIRST_STEP if DERIVED_ARMS[OWN_FIRST_STEP] == (treatment, 0) else f"{treatment} at step 0"


def _scores(runs: Sequence[Record], step: int) -> dict[int, float]:
    return {run.seed: 100 * run.test.accuracy[step] for run in runs}
