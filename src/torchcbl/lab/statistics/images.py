"""Paired by image: two networks answer the same images, in one run or in several."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from torchcbl.lab.statistics.paired import RESAMPLES
from torchcbl.lab.statistics.summary import Interval

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class McNemar:
    """Exact two-sided test of two networks on the same images; only images on which one is right and one wrong count.

    Args:
        only_treatment: Images that the treatment alone has right.
        only_baseline: Images that the baseline alone has right.
        p: Of Binomial(only_treatment + only_baseline, 1/2).
    """

    only_treatment: int
    only_baseline: int
    p: float


def mcnemar(treatment: ArrayLike, baseline: ArrayLike) -> McNemar:
    """Test whether two trained networks differ on images like these (McNemar 1947, the exact form).

    About two networks, not about two ways of training: a second seed may answer otherwise.

    Args:
        treatment: Whether each of N images was classified rightly, (N,) bool.
        baseline: The same of the other network, on the same images in the same order.

    Raises:
        ValueError: The shapes are not the same (N,), or N is 0.

    Example:
        >>> mcnemar([True, True, True, False], [True, False, False, False])
        McNemar(only_treatment=2, only_baseline=0, p=0.5)
    """
    first, second = _pair(treatment, baseline, 1)
    gained, lost = int((first & ~second).sum()), int((second & ~first).sum())
    p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
    return McNemar(gained, lost, p)


def image_interval(
    treatment: ArrayLike, baseline: ArrayLike, *, resamples: int = RESAMPLES, bootstrap_seed: int = 0
) -> Interval:
    """Bound the difference of two trained networks on new images: the paired percentile bootstrap, 95%.

    Args:
        treatment: Whether each of N images was classified rightly, (N,) bool.
        baseline: The same of the other network, on the same images in the same order.
        resamples: How often the images are drawn anew.
        bootstrap_seed: Of the drawing: the same data give the same interval.

    Returns:
        In points of accuracy.

    Raises:
        ValueError: The shapes are not the same (N,), or N is 0.

    Example:
        >>> right, wrong = [True] * 60 + [False] * 40, [True] * 55 + [False] * 45
        >>> print(image_interval(right, wrong))
        1.00 to 10.00
    """
    first, second = _pair(treatment, baseline, 1)
    means = _resample_images(_differences(first, second)[None], resamples, np.random.default_rng(bootstrap_seed))
    return _percentiles(means[:, 0])


def two_level_interval(
    treatment: ArrayLike, baseline: ArrayLike, *, resamples: int = RESAMPLES, bootstrap_seed: int = 0
) -> Interval | None:
    """Bound the mean difference for new seeds on new images, 95%: Student's t over seeds, a bootstrap over images.

    All seeds answer the same N images, so the two are drawn anew each on its own (crossed, as in the pigeonhole
    bootstrap: Owen 2007, Annals of Applied Statistics 1). With d[s, i] in {-1, 0, 1}, image weights v of one resample,
    which sum to 1, bars for means over what is left out, and t of Student's distribution with S - 1 degrees of freedom,

        mean* = mean + t sd_s(dbar[s]) / sqrt(S) + sum_i v[i] (dbar[i] - mean)

    Drawing S seeds anew would be too narrow for few (Hesterberg 2015, The American Statistician 69), and would give one
    of a handful of values; Student's part alone gives Student's interval. The interaction of seed and image, whose
    variance both parts hold already, is not drawn a third time.

    It is never narrower than Student's interval over the seeds, which is about these very images. How often either held
    the true mean in simulated studies is in docs/statistics.md; where seeds hardly differ it is wider than need be.

    Args:
        treatment: Whether each of N images was classified rightly in each of S runs, (S, N) bool.
        baseline: The same of the paired runs of the other arm, on the same images in the same order.
        resamples: How often the images are drawn anew.
        bootstrap_seed: Of the drawing: the same data give the same interval.

    Returns:
        In points of accuracy; None for one seed (`image_interval` is for that).

    Raises:
        ValueError: The shapes are not the same (S, N), or one of them is 0.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> baseline = rng.random((5, 1000)) < 0.78
        >>> treatment = baseline | (rng.random((5, 1000)) < 0.1)
        >>> interval = two_level_interval(treatment, baseline)
        >>> float(100 * (treatment.mean() - baseline.mean())) in interval
        True
    """
    first, second = _pair(treatment, baseline, 2)
    differences = _differences(first, second)
    seeds = len(differences)
    if seeds < 2:
        return None
    of_images = _resample_images(differences, resamples, np.random.default_rng(bootstrap_seed)).mean(axis=1)
    scale = float(differences.mean(axis=1).std(ddof=1)) / math.sqrt(seeds)
    low, high = (_quantile(level, of_images, scale, seeds - 1) for level in (0.025, 0.975))
    return Interval(low, high)


def _quantile(level: float, of_images: Numbers, scale: float, degrees: int) -> float:
    """Return the quantile of e + scale t: e drawn evenly from `of_images`, t from Student's distribution, exactly."""
    if scale == 0.0:  # the seeds all agree
        return float(np.quantile(of_images, level))
    seeds_alone = scale * float(stats.t.ppf(level, degrees))
    found = optimize.brentq(
        lambda c: float(stats.t.cdf((c - of_images) / scale, degrees).mean()) - level,
        seeds_alone + of_images.min() - 0.01 * scale,
        seeds_alone + of_images.max() + 0.01 * scale,
    )
    return float(found)


def _differences(treatment: NDArray[np.bool_], baseline: NDArray[np.bool_]) -> Numbers:
    return 100.0 * (treatment.astype(np.float64) - baseline)


def _resample_images(differences: Numbers, resamples: int, rng: np.random.Generator) -> Numbers:
    """Draw N images anew and average each seed's differences (S, N) over them: (resamples, S).

    Images with the same differences in all seeds are interchangeable, so that counts of these few kinds are drawn in
    place of N weights: the same distribution, hundreds of times faster.
    """
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    images = differences.shape[1]
    drawn = rng.multinomial(images, counts / images, size=resamples)
    means: Numbers = drawn @ kinds.T / images
    return means


def _percentiles(means: Numbers) -> Interval:
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float(low), float(high))


def _pair(treatment: ArrayLike, baseline: ArrayLike, axes: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    first, second = np.asarray(treatment), np.asarray(baseline)
    if first.shape != second.shape or first.ndim != axes or not first.size:
        wanted = "(N,)" if axes == 1 else "(S, N)"
        raise ValueError(
            f"treatment and baseline must have the same shape {wanted}, got {first.shape} and {second.shape}: whether "
            "each of N images was classified rightly, the same images in the same order."
        )
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ValueError(
            f"treatment and baseline must be bool, got {first.dtype} and {second.dtype}: pass right == label."
        )
    return first, second
