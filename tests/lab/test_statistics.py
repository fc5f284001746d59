"""Paired statistics against the paper's published numbers, scipy's paired forms, and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from torchcbl.lab.statistics import Comparison, Interval, compare, compare_all, holm, summarise

STANDARD = (78.19, 78.17, 77.49, 77.88, 78.90)
CBL = (80.59, 81.26, 80.09, 80.73, 80.59)


def by_seed(values: tuple[float, ...] | list[float]) -> dict[int, float]:
    return dict(enumerate(values))


def table_one() -> Comparison:
    return compare(by_seed(CBL), by_seed(STANDARD), names=("cbl", "standard"))


# Whole hundredths of a point, as accuracies on 10,000 images come.
points = st.integers(0, 10_000).map(lambda hundredths: hundredths / 100)
pairs = st.lists(st.tuples(points, points), min_size=3, max_size=8)


def test_table_one_of_the_paper() -> None:
    result = table_one()
    assert result.t_test is not None
    assert result.t_test.t == pytest.approx(10.565, abs=5e-4)
    assert result.t_test.p == pytest.approx(0.00045, abs=5e-6)
    assert result.t_test.degrees == 4
    assert result.mean == pytest.approx(2.526)
    assert summarise(STANDARD).std == pytest.approx(0.52, abs=5e-3)
    assert summarise(CBL).std == pytest.approx(0.42, abs=5e-3)
    assert summarise(STANDARD).mean == pytest.approx(78.126)
    assert summarise(CBL).mean == pytest.approx(80.652)


def test_against_scipys_paired_forms() -> None:
    result = table_one()
    assert result.t_test is not None
    assert result.wilcoxon is not None
    assert result.t_interval is not None
    reference = stats.ttest_rel(CBL, STANDARD)
    assert result.t_test.t == pytest.approx(float(reference.statistic))
    assert result.t_test.p == pytest.approx(float(reference.pvalue))
    interval = reference.confidence_interval(0.95)
    assert result.t_interval.low == pytest.approx(float(interval.low))
    assert result.t_interval.high == pytest.approx(float(interval.high))
    wilcoxon = stats.wilcoxon(CBL, STANDARD, method="exact")
    assert (result.wilcoxon.statistic, result.wilcoxon.p) == (wilcoxon.statistic, wilcoxon.pvalue)


def test_against_closed_forms() -> None:
    # Differences 1, 2, 3: mean 2, deviation 1, t = 2 sqrt(3); Student's t with 2 degrees has a closed p.
    result = compare(by_seed([1.0, 2.0, 3.0]), by_seed([0.0, 0.0, 0.0]))
    assert result.t_test is not None
    assert result.t_interval is not None
    t = 2 * math.sqrt(3)
    assert result.t_test.t == pytest.approx(t)
    assert result.t_test.p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert result.d_z == pytest.approx(2.0)
    assert result.hedges_g == pytest.approx(2.0 * math.gamma(1.0) / math.gamma(0.5))
    critical = 4.302652729911275  # of t with 2 degrees at 0.975
    assert result.t_interval.low == pytest.approx(2 - critical / math.sqrt(3))
    assert result.t_interval.high == pytest.approx(2 + critical / math.sqrt(3))


@pytest.mark.parametrize(("n", "smallest"), [(2, 0.5), (5, 0.0625), (6, 0.03125)])
def test_wilcoxon_says_how_low_it_can_go(n: int, smallest: float) -> None:
    result = compare(by_seed([1.0 + k for k in range(n)]), by_seed([0.0] * n))
    assert result.wilcoxon is not None
    assert result.wilcoxon.smallest_p == smallest
    assert result.wilcoxon.p == pytest.approx(smallest)  # all of one sign is the extreme case
    assert result.wilcoxon.statistic == 0


def test_wilcoxon_is_exact_with_ties_and_leaves_zeros_out() -> None:
    differences = [0.1, 0.1, -0.1, 0.3, 0.0]
    result = compare(by_seed([70 + difference for difference in differences]), by_seed([70.0] * 5))
    assert result.wilcoxon is not None
    # Ranks of |d| without the zero: 2, 2, 2, 4, the negative ones sum to 2; every sign pattern is as likely.
    sums = [sum(r for bit, r in enumerate((2, 2, 2, 4)) if code >> bit & 1) for code in range(16)]
    expected = sum(min(total, 10 - total) <= 2 for total in sums) / 16
    assert result.wilcoxon.statistic == 2
    assert result.wilcoxon.p == pytest.approx(expected)
    assert result.wilcoxon.smallest_p == 2 / 2**4


def test_bootstrap_lies_within_the_differences_and_repeats() -> None:
    first, again, other = (
        compare(by_seed(CBL), by_seed(STANDARD), bootstrap_seed=seed).bootstrap_interval for seed in (0, 0, 1)
    )
    assert first is not None
    assert other is not None
    assert first == again
    assert first != other
    differences = np.subtract(CBL, STANDARD)
    assert differences.min() <= first.low < differences.mean() < first.high <= differences.max()
    assert first.low == pytest.approx(other.low, abs=0.05)


def test_one_run_gives_a_difference_and_no_test() -> None:
    result = compare({0: 80.0}, {0: 79.0})
    assert result.mean == 1.0
    assert result.n == 1
    assert (result.t_test, result.wilcoxon, result.t_interval, result.bootstrap_interval) == (None, None, None, None)
    assert (result.p_holm, result.d_z, result.hedges_g) == (None, None, None)
    assert not result.difference_shown


def test_two_runs_have_a_t_test_and_no_bootstrap() -> None:
    result = compare({0: 80.0, 1: 81.0}, {0: 79.0, 1: 79.0})
    assert result.t_test is not None
    assert result.t_test.t == pytest.approx(3.0)
    assert result.t_test.p == pytest.approx(1 - 2 * math.atan(3.0) / math.pi)  # Student's t with 1 degree
    assert result.bootstrap_interval is None
    assert result.hedges_g is None


def test_identical_arms_show_no_difference() -> None:
    result = compare(by_seed(STANDARD), by_seed(STANDARD))
    assert result.mean == 0.0
    assert (result.t_test, result.wilcoxon, result.t_interval) == (None, None, None)
    assert not result.difference_shown
    assert result.bootstrap_interval == Interval(0.0, 0.0)


def test_constant_difference_has_no_t_test_despite_rounding() -> None:
    # 80.3 - 80.1 and 79.3 - 79.1 differ in the last bit: without rounding t would be about 1e13.
    result = compare(by_seed([80.3, 79.3, 78.3]), by_seed([80.1, 79.1, 78.1]))
    assert result.differences == (0.2, 0.2, 0.2)
    assert (result.t_test, result.d_z, result.p_holm) == (None, None, None)


def test_only_common_finite_seeds_are_paired() -> None:
    treatment = {0: 80.0, 1: 81.0, 2: math.nan, 4: 82.0, 5: 83.0}
    baseline = {5: 79.0, 0: 79.0, 1: 79.0, 2: 79.0, 3: 79.0, 4: math.inf}
    result = compare(treatment, baseline)
    assert result.seeds == (0, 1, 5)
    assert result.differences == (1.0, 2.0, 4.0)
    assert result.unpaired == (3,)
    assert result.not_finite == (2, 4)


def test_no_common_seed() -> None:
    result = compare({0: 1.0}, {1: 1.0})
    assert result.n == 0
    assert (result.mean, result.t_test) == (None, None)
    assert result.unpaired == (0, 1)


def test_several_arms_are_corrected_together() -> None:
    scores = {
        "standard": by_seed(STANDARD),
        "cbl": by_seed(CBL),
        "near": by_seed([score + shift for score, shift in zip(STANDARD, (0.1, -0.2, 0.3, 0.2, 0.1), strict=True)]),
        "single": {0: 80.0},
    }
    results = {result.treatment: result for result in compare_all(scores, "standard")}
    assert list(results) == ["cbl", "near", "single"]
    assert results["cbl"].num_comparisons == results["near"].num_comparisons == 2  # "single" makes no test
    assert results["cbl"].t_test is not None
    assert results["near"].t_test is not None
    assert results["cbl"].p_holm == pytest.approx(2 * results["cbl"].t_test.p)
    assert results["near"].p_holm == pytest.approx(results["near"].t_test.p)
    assert results["cbl"].difference_shown
    assert not results["near"].difference_shown
    assert results["single"].p_holm is None


def test_without_a_baseline_there_is_no_comparison() -> None:
    assert compare_all({"cbl": by_seed(CBL)}, "standard") == []


def test_holm_on_a_worked_example() -> None:
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_summary_of_one_and_of_none() -> None:
    assert summarise([5.0]).std is None
    assert math.isnan(summarise([1.0, math.nan]).mean)
    with pytest.raises(ValueError, match="at least one score, got none"):
        summarise([])


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_swapping_the_arms_flips_the_sign(scores: list[tuple[float, float]]) -> None:
    one, other = ({seed: pair[side] for seed, pair in enumerate(scores)} for side in (0, 1))
    forth, back = compare(one, other), compare(other, one)
    assert back.differences == tuple(-difference for difference in forth.differences)
    assert forth.mean is not None
    assert back.mean == pytest.approx(-forth.mean)
    assume(forth.t_test is not None)
    assert forth.t_test is not None
    assert back.t_test is not None
    assert back.t_test.t == pytest.approx(-forth.t_test.t)
    assert back.t_test.p == pytest.approx(forth.t_test.p)
    assert forth.t_interval is not None
    assert back.t_interval is not None
    assert back.t_interval.low == pytest.approx(-forth.t_interval.high)
    assert forth.wilcoxon is not None
    assert back.wilcoxon is not None
    assert back.wilcoxon.p == pytest.approx(forth.wilcoxon.p)


@settings(max_examples=40, deadline=None)
@given(pairs, st.floats(-50, 50))
def test_a_constant_added_to_both_arms_changes_nothing(scores: list[tuple[float, float]], shift: float) -> None:
    one, other = ({seed: pair[side] for seed, pair in enumerate(scores)} for side in (0, 1))
    moved = [{seed: score + shift for seed, score in arm.items()} for arm in (one, other)]
    assert compare(*moved) == compare(one, other)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_interval_and_p_agree(scores: list[tuple[float, float]]) -> None:
    one, other = ({seed: pair[side] for seed, pair in enumerate(scores)} for side in (0, 1))
    result = compare(one, other)
    assume(result.t_test is not None)
    assert result.t_test is not None
    assert result.t_interval is not None
    assume(abs(result.t_test.p - 0.05) > 1e-9)
    assert (0.0 in result.t_interval) is (result.t_test.p > 0.05)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=6))
def test_holm_keeps_the_order_and_its_bounds(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    assert [corrected[index] for index in np.argsort(p_values, kind="stable")] == sorted(corrected)
    if p_values:
        assert min(corrected) == min(1.0, len(p_values) * min(p_values))
    assert holm(p_values[::-1]) == corrected[::-1]


def test_comparisons_that_are_still_to_come_count_for_the_correction() -> None:
    scores = {"standard": {0: 78.0, 1: 78.4, 2: 78.1}, "cbl": {0: 79.0, 1: 79.5, 2: 79.3}}
    (alone,) = compare_all(scores, "standard")
    (partial,) = compare_all(scores, "standard", planned=2)
    assert alone.t_test is not None
    assert alone.p_holm == alone.t_test.p
    assert partial.p_holm == 2 * alone.t_test.p
    assert partial.num_comparisons == 2


def test_equal_differences_stay_equal_when_results_keep_seven_digits() -> None:
    for n, right in ((397, (222, 337, 100)), (11_005, (9_000, 9_101, 10_222))):
        gained = 2
        before = {seed: 100 * round(count / n, 7) for seed, count in enumerate(right)}
        after = {seed: 100 * round((count + gained) / n, 7) for seed, count in enumerate(right)}
        found = compare(after, before)
        assert found.t_test is None
        assert found.t_interval is None
        assert found.mean == pytest.approx(100 * gained / n, abs=1e-4)
    assert compare({0: 0.0, 1: 0.01}, {0: 0.0, 1: 0.0}).t_test is not None  # one image of 10,000


def test_an_interval_has_no_negative_zero() -> None:
    assert str(Interval(-0.001, 0.59)) == "0.00 to 0.59"
