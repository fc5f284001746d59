"""Practical equivalence against baycomp, the t-test and closed forms."""

from __future__ import annotations

import math

import baycomp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from torchcbl.lab.statistics import compare, practical

DIFFERENCES = (2.40, 3.09, 2.60, 2.85, 1.69)  # Table 1 of the paper

differences = st.lists(st.integers(-300, 300).map(lambda hundredths: hundredths / 100), min_size=2, max_size=12)


@pytest.mark.parametrize("rope", [0.1, 0.5, 2.5])
@pytest.mark.parametrize("runs", [1, 2])
def test_correlated_folds_are_those_of_baycomp(rope: float, runs: int) -> None:
    values = np.array([0.4, -0.3, 0.8, 1.9, 0.2, 0.1, 0.7, -0.1, 0.9, 0.3])
    worse, equal, better = baycomp.two_on_single(np.zeros(10), values, rope=rope, runs=runs)
    found = practical(values.tolist(), rope, correlation=runs / 10)  # 10 / runs folds
    assert found is not None
    assert (found.worse, found.equal, found.better) == pytest.approx((worse, equal, better))


def test_independent_seeds_are_baycomps_posterior_without_the_correction() -> None:
    values = np.array(DIFFERENCES)
    posterior = baycomp.single.Posterior(values.mean(), values.var(ddof=1) / 5, 4, rope=2.0)
    found = practical(DIFFERENCES, rope=2.0)
    assert found is not None
    assert (found.worse, found.equal, found.better) == pytest.approx(posterior.probs())


def test_two_differences_have_a_closed_form() -> None:
    # One degree of freedom: Cauchy about 1 with scale |d1 - d2| / 2 = 1.
    found = practical([0.0, 2.0], rope=0.5)
    assert found is not None
    assert found.worse == pytest.approx(0.5 + math.atan(-1.5) / math.pi)
    assert found.better == pytest.approx(0.5 - math.atan(-0.5) / math.pi)


def test_correlation_makes_the_answer_less_sure() -> None:
    sure, less = practical([0.1, -0.2, 0.2, 0.0]), practical([0.1, -0.2, 0.2, 0.0], correlation=0.5)
    assert sure is not None
    assert less is not None
    assert less.equal < sure.equal


@settings(max_examples=10, deadline=None)
@given(differences)
def test_without_a_region_it_is_the_t_test(values: list[float]) -> None:
    found = practical(values, rope=0.0)
    result = compare(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    assert (found is None) is (result.t_test is None)
    assume(found is not None)
    assert found is not None
    assert result.t_test is not None
    assert found.equal == pytest.approx(0.0, abs=1e-12)
    assert min(found.worse, found.better) == pytest.approx(result.t_test.p / 2)


@settings(max_examples=40, deadline=None)
@given(differences, st.floats(0, 3))
def test_probabilities_sum_to_one_and_swap_with_the_arms(values: list[float], rope: float) -> None:
    found, swapped = practical(values, rope), practical([-value for value in values], rope)
    assume(found is not None)
    assert found is not None
    assert swapped is not None
    assert found.worse + found.equal + found.better == pytest.approx(1.0)
    assert min(found.worse, found.equal, found.better) >= 0
    assert (swapped.worse, swapped.better) == pytest.approx((found.better, found.worse))


def test_without_spread_there_is_no_answer() -> None:
    assert practical([0.3]) is None
    assert practical([0.3, 0.3, 0.3]) is None


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="rope must be >= 0 points, got -0.5"):
        practical(DIFFERENCES, rope=-0.5)
    with pytest.raises(ValueError, match=r"correlation must be in \[0, 1\), got 1"):
        practical(DIFFERENCES, correlation=1.0)
