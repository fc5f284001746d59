"""Image by image: McNemar against statsmodels, intervals against closed forms, coverage by simulation."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from statsmodels.stats.contingency_tables import mcnemar as oracle

from intervals import answers, true_difference
from torchcbl.lab.statistics import Interval, image_interval, mcnemar, t_interval, two_level_interval


def test_mcnemar_is_that_of_statsmodels() -> None:
    treatment, baseline = (arm[0] for arm in answers(np.random.default_rng(0), 1, 400, 0.0))
    found = mcnemar(treatment, baseline)
    table = [[np.sum(treatment & baseline), found.only_treatment], [found.only_baseline, 0]]
    assert found.only_treatment == int(np.sum(treatment & ~baseline)) > 0
    assert found.p == pytest.approx(oracle(table, exact=True).pvalue)


def test_mcnemar_of_equal_answers() -> None:
    assert mcnemar([True, False], [True, False]).p == 1.0


def test_image_interval_has_the_closed_forms_width() -> None:
    treatment, baseline = (arm[0] for arm in answers(np.random.default_rng(1), 1, 5000, 0.0))
    differences = 100 * (treatment.astype(float) - baseline)
    found = image_interval(treatment, baseline)
    margin = 1.96 * differences.std() / math.sqrt(5000)
    assert (found.low, found.high) == pytest.approx(
        (differences.mean() - margin, differences.mean() + margin), abs=0.04
    )


def test_two_level_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, trials = np.random.default_rng(2), 200
    for of_seed in (0.02, 0.1):
        truth = true_difference(of_seed)
        held = {"both": 0, "images": 0, "seeds": 0}
        for _ in range(trials):
            treatment, baseline = answers(rng, 5, 500, of_seed)
            both = two_level_interval(treatment, baseline, resamples=400)
            one = image_interval(treatment[0], baseline[0], resamples=400)
            by_seed = t_interval((100 * (treatment.mean(axis=1) - baseline.mean(axis=1))).tolist())
            assert both is not None
            assert by_seed is not None
            held["both"] += truth in both
            held["images"] += truth in one
            held["seeds"] += truth in by_seed
        assert held["both"] / trials >= 0.93, (of_seed, held)
        if of_seed == 0.1:
            assert held["images"] / trials < 0.7  # a single run knows nothing of other seeds
        else:
            assert held["seeds"] / trials < 0.93  # the seeds know nothing of other images


def test_image_interval_holds_the_truth_where_seeds_do_not_matter() -> None:
    rng, trials = np.random.default_rng(3), 300
    pairs = [answers(rng, 1, 500, 0.0) for _ in range(trials)]
    held = np.mean([true_difference(0.0) in image_interval(a[0], b[0], resamples=300) for a, b in pairs])
    assert held == pytest.approx(0.95, abs=0.035)


@pytest.mark.parametrize("shares", [(40, 960), (100, 250, 650), (40, 130, 70, 95, 60, 105, 85, 75, 110, 90, 80, 60)])
def test_where_no_image_stands_out_students_interval_remains(shares: tuple[int, ...]) -> None:
    # Every image is gained by one seed: all images have the same mean over the seeds, new ones change nothing.
    treatment = np.repeat(np.eye(len(shares), dtype=bool), shares, axis=1)
    found = two_level_interval(treatment, np.zeros_like(treatment))
    student = t_interval([share / 10 for share in shares])
    assert found is not None
    assert student is not None
    assert (found.low, found.high) == pytest.approx((student.low, student.high))


@pytest.mark.parametrize("of_image", [0.02, 0.1, 0.3])
def test_new_images_never_make_it_narrower_than_students(of_image: float) -> None:
    rng = np.random.default_rng(9)
    for seeds in (2, 3, 4, 5):
        treatment, baseline = answers(rng, seeds, 1000, 0.1, of_image)
        found = two_level_interval(treatment, baseline)
        student = t_interval((100 * (treatment.mean(axis=1) - baseline.mean(axis=1))).tolist())
        assert found is not None
        assert student is not None
        assert found.low <= student.low + 0.01
        assert found.high >= student.high - 0.01


def test_where_seeds_agree_the_images_interval_remains() -> None:
    treatment, baseline = (np.repeat(arm[:1], 5, axis=0) for arm in answers(np.random.default_rng(4), 1, 1000, 0.0))
    found, single = two_level_interval(treatment, baseline), image_interval(treatment[0], baseline[0])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((single.low, single.high), abs=0.1)


def test_it_repeats_and_swaps_with_the_arms() -> None:
    treatment, baseline = answers(np.random.default_rng(5), 5, 1000, 0.05)
    first, again = (two_level_interval(treatment, baseline) for _ in range(2))
    other, swapped = two_level_interval(treatment, baseline, bootstrap_seed=1), two_level_interval(baseline, treatment)
    assert first is not None
    assert other is not None
    assert swapped is not None
    assert first == again != other
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.15)
    assert (swapped.low, swapped.high) == pytest.approx((-first.high, -first.low), abs=0.15)


def test_order_of_images_does_not_matter() -> None:
    treatment, baseline = answers(np.random.default_rng(6), 3, 300, 0.05)
    order = np.random.default_rng(0).permutation(300)
    assert two_level_interval(treatment[:, order], baseline[:, order]) == two_level_interval(treatment, baseline)


def test_a_study_of_ten_thousand_images_takes_a_moment() -> None:
    treatment, baseline = answers(np.random.default_rng(7), 5, 10_000, 0.05)
    start = time.perf_counter()
    two_level_interval(treatment, baseline)
    assert time.perf_counter() - start < 5.0  # N weights a resample would take a minute


def test_one_seed_has_no_two_level_interval_and_equal_arms_an_empty_one() -> None:
    treatment, baseline = answers(np.random.default_rng(8), 2, 100, 0.05)
    assert two_level_interval(treatment[:1], baseline[:1]) is None
    assert two_level_interval(treatment, treatment) == Interval(0.0, 0.0)


def test_wrong_input_is_refused() -> None:
    right = np.ones((2, 5), dtype=bool)
    with pytest.raises(ValueError, match=r"same shape \(S, N\), got \(2, 5\) and \(2, 4\)"):
        two_level_interval(right, right[:, :4])
    with pytest.raises(ValueError, match=r"same shape \(N,\), got \(2, 5\)"):
        mcnemar(right, right)
    with pytest.raises(ValueError, match=r"same shape \(N,\), got \(0,\)"):
        image_interval(np.zeros(0, dtype=bool), np.zeros(0, dtype=bool))
    with pytest.raises(ValueError, match=r"must be bool, got int64 and bool: pass right == label"):
        mcnemar(np.ones(3, dtype=np.int64), np.ones(3, dtype=bool))
