"""Which arms are asked about and which comparisons are made together: a loop against all of its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torchcbl.lab.recipe import DERIVED_ARMS
from torchcbl.lab.records import Record
from torchcbl.lab.report.roles import is_control, is_loop, is_oracle, same_network
from torchcbl.lab.statistics import Comparison, compare_all, compare_with_each

BASELINE = "standard"
BASELINES = (BASELINE, "as-released-standard")
PREFERRED = "cbl"
OWN_FIRST_STEP = "loop-free"


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


def family(treatment: str, runs: Mapping[str, Sequence[Record]], planned: Sequence[str]) -> list[Comparison]:
    """Compare a treatment with each of its controls, as one family of tests.

    Args:
        treatment: The arm asked about.
        runs: The finished runs of every arm.
        planned: Arms of the study: controls without runs yet count in the correction.

    Returns:
        Treatment minus control in points of test accuracy; its own step 0 is a control where it has steps.
    """
    controls = [arm for arm in dict.fromkeys((*planned, *runs)) if is_control(arm, treatment)]
    against = {arm: _scores(runs.get(arm, ()), -1) for arm in controls}
    if all(len(run.test.accuracy) > 1 for run in runs[treatment]):
        against[own_first_step(treatment)] = _scores(runs[treatment], 0)
    return compare_with_each(treatment, _scores(runs[treatment], -1), against, planned=len(against))


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
