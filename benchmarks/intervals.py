"""How often the laboratory's intervals hold the truth, and how often looking early shows what is not there.

    python benchmarks/intervals.py [--json results/benchmarks/intervals.json]

Simulated studies, so that the truth is known. Coverage: S seeds of two arms answer the same N images; an answer is
right where a normal variable is above 0, made of the image's difficulty, the gain of the treatment, an effect of the
seed on each arm, an effect of the image on the treatment, and noise. Counted is how often each 95% interval holds the
true mean difference over new seeds and new images, for 2, 3, 5 and 10 seeds, 500 and 4000 images, and two sizes of
each effect. Percentile: the bootstrap over seeds alone, as `compare` takes it, of normal differences. Looks: paired
t-tests at 0.05 of normal differences without a mean, shown if any of several looks at a growing number of seeds shows
one. About four minutes.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

import record
from torchcbl.lab.statistics import RESAMPLES, t_interval, two_level_interval

Right = NDArray[np.bool_]

SEEDS = (2, 3, 5, 10)
IMAGES = (500, 4000)
OF_SEED = (0.02, 0.1)
OF_IMAGE = (0.1, 0.3)
LOOKS = ((5,), (3, 4, 5), tuple(range(3, 11)))
DIFFICULTY = 1.2
"""Mean and deviation of what makes images easy: about 8 of 10 are classified rightly."""
NOISE = 0.4
CHUNK = 200
"""Studies at a time, which share what the bootstrap draws."""


def answers(
    rng: np.random.Generator, seeds: int, images: int, of_seed: float, of_image: float = 0.3, gain: float = 0.05
) -> tuple[Right, Right]:
    """Draw which images the treatment and the baseline classify rightly, (S, N) each; they share the difficulty."""
    difficulty, noise = rng.normal(DIFFICULTY, DIFFICULTY, images), rng.normal(0, NOISE, (2, seeds, images))
    lift = gain + rng.normal(0, of_image, images) + rng.normal(0, of_seed, (seeds, 1))
    return difficulty + lift + noise[0] > 0, difficulty + rng.normal(0, of_seed, (seeds, 1)) + noise[1] > 0


def true_difference(of_seed: float, of_image: float = 0.3, gain: float = 0.05) -> float:
    """Return the mean difference over new seeds and new images, in points."""
    spread = DIFFICULTY**2 + NOISE**2 + of_seed**2
    lifted = stats.norm.cdf((DIFFICULTY + gain) / math.sqrt(spread + of_image**2))
    return 100 * float(lifted - stats.norm.cdf(DIFFICULTY / math.sqrt(spread)))


def coverage(seeds: int, images: int, of_seed: float, of_image: float, trials: int) -> dict[str, object]:
    """Count how often the interval over seeds and images, and Student's over seeds, hold the truth."""
    rng = np.random.default_rng([seeds, images, round(1000 * of_seed), round(1000 * of_image)])
    truth = true_difference(of_seed, of_image)
    two_level = student = narrower = 0
    for _ in range(trials):
        treatment, baseline = answers(rng, seeds, images, of_seed, of_image)
        both = two_level_interval(treatment, baseline, resamples=400)
        alone = t_interval((100 * (treatment.mean(axis=1) - baseline.mean(axis=1))).tolist())
        assert both is not None
        two_level += truth in both
        if alone is not None:  # else all seeds differ by the same, which has no spread
            student += truth in alone
            narrower += both.high - both.low < (alone.high - alone.low) * (1 - 1e-6)
    row: dict[str, object] = {"kind": "coverage", "seeds": seeds, "images": images, "of_seed": of_seed}
    counted = {"two_level": two_level, "student": student, "narrower": narrower, "n": trials}
    return row | {"of_image": of_image} | counted


def percentile(seeds: int, trials: int) -> dict[str, object]:
    """Count how often the percentile bootstrap over seeds alone, and Student's interval, hold the mean 0."""
    rng = np.random.default_rng([seeds, 1])
    bootstrap = student = 0
    for start in range(0, trials, CHUNK):
        drawn = rng.normal(0, 1, (min(CHUNK, trials - start), seeds))
        found = stats.bootstrap(
            (drawn,), np.mean, axis=1, n_resamples=RESAMPLES, batch=CHUNK, method="percentile", rng=rng
        ).confidence_interval
        bootstrap += int(((found.low <= 0) & (found.high >= 0)).sum())
        student += int((stats.ttest_1samp(drawn, 0, axis=1).pvalue >= 0.05).sum())
    return {"kind": "percentile", "seeds": seeds, "percentile": bootstrap, "student": student, "n": trials}


def looks(counts: Sequence[int], trials: int) -> dict[str, object]:
    """Count how often a study without any difference shows one at any of its looks (the t-test of `compare`)."""
    drawn = np.random.default_rng([*counts, 2]).normal(0, 1, (trials, max(counts)))
    p = np.stack([stats.ttest_1samp(drawn[:, :count], 0, axis=1).pvalue for count in counts])
    return {"kind": "looks", "looks": list(counts), "shown": int((p < 0.05).any(axis=0).sum()), "n": trials}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=300, help="studies of each setting of coverage (default 300)")
    parser.add_argument("--studies", type=int, default=20000, help="studies of percentile and looks (default 20000)")
    parser.add_argument("--images", type=int, nargs="+", default=IMAGES, help="of coverage (default 500 4000)")
    parser.add_argument("--json", help="also write the rows to this file")
    arguments = parser.parse_args()
    rows: list[dict[str, object]] = []

    def add(row: dict[str, object]) -> None:
        rows.append(row)
        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)

    for counts in LOOKS:
        add(looks(counts, arguments.studies))
    for seeds in (3, 5, 10):
        add(percentile(seeds, arguments.studies))
    for images in arguments.images:
        for seeds in SEEDS:
            for of_seed in OF_SEED:
                for of_image in OF_IMAGE:
                    add(coverage(seeds, images, of_seed, of_image, arguments.trials))
    if arguments.json:
        command = "python benchmarks/intervals.py --json results/benchmarks/intervals.json"
        record.write(arguments.json, command, "simulated studies, whose truth is known", rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
