"""Power and numbers of seeds against statsmodels, simulation and their own inverse."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.power import TTestPower

from torchcbl.lab.statistics import plan, power, sd_limit, seeds_needed, smallest_difference


@pytest.mark.parametrize("effect", [0.2, 0.8, 1.7, 3.0])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_power_and_seeds_are_those_of_statsmodels(effect: float, alpha: float) -> None:
    oracle, sd = TTestPower(), 0.5 / effect
    for n in (2, 3, 4, 5):  # beyond, statsmodels gives NaN for large effects
        assert power(n, sd, 0.5, alpha) == pytest.approx(oracle.power(effect, n, alpha), abs=1e-9)
    seeds = seeds_needed(sd, 0.5, alpha=alpha)
    assert seeds == math.ceil(oracle.solve_power(effect_size=effect, alpha=alpha, power=0.8))


def test_power_is_what_a_simulation_finds() -> None:
    rng, n, sd, trials = np.random.default_rng(0), 5, 0.3, 20_000
    p = stats.ttest_1samp(rng.normal(0.5, sd, (trials, n)), 0.0, axis=1).pvalue
    assert power(n, sd, 0.5) == pytest.approx(float((p < 0.05).mean()), abs=0.01)


def test_power_without_a_difference_is_the_level_and_never_above_one() -> None:
    assert power(5, 0.3, 0.0, alpha=0.05) == pytest.approx(0.05)
    assert power(5, 0.3, 4.0) == 1.0  # scipy's far tail is NaN here
    assert power(3, 1e-6, 0.5) == 1.0


@pytest.mark.parametrize("sd", [0.01, 0.2, 0.5, 3.0, 40.0])
def test_seeds_are_the_least_that_suffice(sd: float) -> None:
    seeds = seeds_needed(sd)
    assert power(seeds, sd) >= 0.8
    assert seeds == 2 or power(seeds - 1, sd) < 0.8


def test_many_seeds_follow_the_normal_formula() -> None:
    sd = 10.0
    normal = ((stats.norm.isf(0.025) + stats.norm.isf(0.2)) * sd / 0.5) ** 2
    assert seeds_needed(sd) == pytest.approx(normal, rel=0.001)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_smallest_difference_inverts_the_power(n: int) -> None:
    smallest = smallest_difference(n, 0.3)
    assert power(n, 0.3, smallest) == pytest.approx(0.8)
    assert smallest_difference(n, 0.3, alpha=0.01) > smallest
    assert smallest_difference(n, 0.6) == pytest.approx(2 * smallest)


def test_upper_limit_of_the_deviation_holds_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    samples = rng.normal(0.0, 2.0, (20_000, 5)).std(axis=1, ddof=1)
    held = np.mean([sd_limit(sample, 5) >= 2.0 for sample in samples])
    assert held == pytest.approx(0.8, abs=0.01)


def test_a_cautious_plan_reaches_its_power_in_four_of_five_studies() -> None:
    rng, sd = np.random.default_rng(2), 0.4
    plans = [plan(rng.normal(0.3, sd, 5).tolist()) for _ in range(300)]
    careless = np.mean([power(one.seeds, sd) >= 0.8 for one in plans if one])
    cautious = np.mean([power(one.seeds_cautious, sd) >= 0.8 for one in plans if one])
    assert cautious == pytest.approx(0.8, abs=0.07)
    assert careless < 0.6  # the plug-in deviation is too small about every second time


def test_plan_puts_the_parts_together() -> None:
    found = plan([0.1, -0.2, 0.3, 0.4, 0.9], alpha=0.05 / 4)
    assert found is not None
    assert found.n == 5
    assert found.sd == pytest.approx(np.std([0.1, -0.2, 0.3, 0.4, 0.9], ddof=1))
    assert found.seeds == seeds_needed(found.sd, alpha=0.0125)
    assert found.seeds_cautious == seeds_needed(sd_limit(found.sd, 5), alpha=0.0125) > found.seeds
    assert found.smallest == smallest_difference(5, found.sd, alpha=0.0125)


def test_without_spread_there_is_no_plan() -> None:
    assert plan([0.3]) is None
    assert plan([0.3, 0.3]) is None


def test_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="n must be >= 2 paired seeds, got 1"):
        power(1, 0.3)
    with pytest.raises(ValueError, match="sd must be > 0 and finite, got 0"):
        power(5, 0.0)
    with pytest.raises(ValueError, match="difference must be >= 0 points, got -1"):
        power(5, 0.3, -1.0)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\), got 1"):
        power(5, 0.3, alpha=1.0)
    with pytest.raises(ValueError, match="difference must be > 0 points, got 0"):
        seeds_needed(0.3, 0.0)
    with pytest.raises(ValueError, match=r"wanted must be in \(0, 1\), got 1"):
        seeds_needed(0.3, wanted=1.0)
    with pytest.raises(ValueError, match=r"wanted must be in \(alpha, 1\) = \(0.05, 1\), got 0.01"):
        smallest_difference(5, 0.3, wanted=0.01)
    with pytest.raises(ValueError, match="deviation of 1 values is not known: sd_limit needs n >= 2"):
        sd_limit(0.3, 1)
