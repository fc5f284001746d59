"""Several comparisons made together, their p-values corrected for that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torchcbl.lab.statistics.paired import Comparison, compare


def compare_all(
    scores: Mapping[str, Mapping[int, float]], baseline: str, *, planned: int = 0, bootstrap_seed: int = 0
) -> list[Comparison]:
    """Compare every arm with the baseline, p-values corrected by Holm's method for the number of tests.

    Args:
        scores: Score by seed for every arm, in points.
        baseline: Name of the arm that the others are held against.
        planned: Number of comparisons the study is to make. Those that cannot be tested yet count all the same, so
            that stopping a study early does not weaken the correction.
        bootstrap_seed: As in `compare`.

    Returns:
        One comparison per other arm, in the order of `scores`; none where the baseline itself has no scores.

    Example:
        >>> scores = {"standard": {0: 78.0, 1: 78.4}, "cbl": {0: 79.0, 1: 79.5}, "gate": {0: 77.0, 1: 78.5}}
        >>> [result.num_comparisons for result in compare_all(scores, "standard")]
        [2, 2]
    """
    if baseline not in scores:
        return []
    results = [
        compare(scores[arm], scores[baseline], names=(arm, baseline), bootstrap_seed=bootstrap_seed)
        for arm in scores
        if arm != baseline
    ]
    return _corrected(results, planned)


def compare_with_each(
    treatment: str,
    scores: Mapping[int, float],
    controls: Mapping[str, Mapping[int, float]],
    *,
    planned: int = 0,
    bootstrap_seed: int = 0,
) -> list[Comparison]:
    """Compare one arm with each of its controls, p-values corrected by Holm's method for the number of tests.

    Args:
        treatment: Name of the arm asked about.
        scores: Its score by seed, in points.
        controls: Score by seed of every control, in points.
        planned: As in `compare_all`.
        bootstrap_seed: As in `compare`.

    Returns:
        One comparison per control, treatment minus control, in the order of `controls`.

    Example:
        >>> controls = {"standard": {0: 78.0, 1: 78.4}, "no-context": {0: 78.9, 1: 79.5}}
        >>> results = compare_with_each("cbl", {0: 79.0, 1: 79.5}, controls)
        >>> [(result.baseline, round(result.mean, 2)) for result in results]
        [('standard', 1.05), ('no-context', 0.05)]
    """
    results = [
        compare(scores, control, names=(treatment, name), bootstrap_seed=bootstrap_seed)
        for name, control in controls.items()
    ]
    return _corrected(results, planned)


def at_least(comparison: Comparison, count: int) -> Comparison:
    """Correct a comparison for no fewer than so many tests, whatever Holm's steps left of its family.

    Args:
        comparison: As `compare_all` or `compare_with_each` returns it.
        count: Number of tests that the same question is put to.

    Example:
        >>> alone = compare({0: 79.0, 1: 79.5, 2: 79.1}, {0: 78.0, 1: 78.4, 2: 78.3})
        >>> twice = at_least(alone, 2)
        >>> twice.num_comparisons, round(twice.p_holm / alone.p_holm, 6)
        (2, 2.0)
    """
    if comparison.t_test is None or comparison.p_holm is None:
        return comparison
    corrected = max(comparison.p_holm, min(1.0, count * comparison.t_test.p))
    return replace(comparison, num_comparisons=max(count, comparison.num_comparisons), p_holm=corrected)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for having made several tests: the i-th smallest of k is times k - i + 1 (Holm 1979).

    Args:
        p_values: Each in [0, 1].

    Returns:
        The corrected values in the same order, each in [0, 1] and none below its original.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = running
    return corrected


def _corrected(results: Sequence[Comparison], planned: int) -> list[Comparison]:
    p_values = [result.t_test.p for result in results if result.t_test]
    count = max(planned, len(p_values))
    corrected = iter(holm(p_values + [1.0] * (count - len(p_values))))
    return [
        replace(result, num_comparisons=count, p_holm=next(corrected)) if result.t_test else result
        for result in results
    ]
