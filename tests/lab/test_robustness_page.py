"""What the page on noise says, against numbers made by hand."""

from __future__ import annotations

import numpy as np

from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.report.robustness import sentences, tables
from torchcbl.lab.robustness import NoisyRun, Robustness

RATIOS = ("clean", "10 dB", "0 dB")
RIVALS = ("cbl", "no-context", "untied", "wider-params", "ensemble")


def study(*runs: NoisyRun, arms: tuple[str, ...]) -> Robustness:
    names = ", ".join(f'"{arm}"' for arm in arms)
    return Robustness(load_recipe("speech-five-words", {"arms": f"[{names}]"}), runs)


def a_run(arm: str, seed: int, *accuracy: float) -> NoisyRun:
    rows = tuple((value,) for value in accuracy)
    return NoisyRun(arm, seed, 1000, RATIOS, rows, rows)


def test_the_level_is_shared_by_ratios_and_arms_and_oracles_stand_outside() -> None:
    gains = (0.012, 0.015, 0.011, 0.008)  # p = 0.004: below 0.05 / 3, above 0.05 / (3 x 9)
    runs = [a_run("standard", seed, 0.9, 0.8, 0.7) for seed in range(4)]
    for arm in ("cbl", "label-context"):
        runs += [a_run(arm, seed, 0.9, 0.8, 0.7 + gain) for seed, gain in enumerate(gains)]
    alone, told = sentences(study(*runs, arms=("standard", "cbl", "label-context")))
    assert alone == "cbl differs from standard by +1.15 points (0 dB): at 0.05 over 3 ratios (Bonferroni), 4 pairs."
    assert told.endswith("(Bonferroni), 4 pairs; it is told the labels: an upper bound, no competitor.")
    more = ("cbl-gate", *RIVALS[1:], "shuffled-context", "frozen-context", "wider-flops")
    among, *_ = sentences(study(*runs, arms=("standard", "cbl", *more, "label-context")))
    assert among.startswith("cbl against standard: no difference shown at any ratio, at 0.05 over 3 ratios and 9 arms")


def test_seeds_left_out_are_named() -> None:
    runs = [a_run("standard", seed, 0.9, 0.8, 0.7) for seed in range(2)]
    runs += [a_run("cbl", seed, 0.9, 0.8, 0.7 + 0.01 * seed) for seed in range(3)]
    said, missing = sentences(study(*runs, arms=("standard", "cbl")))
    assert said.endswith("2 pairs, left out: seed 2.")
    assert missing.startswith("Partial: 5 of 6 runs finished")
    assert missing.endswith("missing: standard-seed2.")


def test_what_two_of_three_seeds_show_is_a_lead() -> None:
    runs = [a_run("standard", seed, 0.9, 0.8, 0.7) for seed in range(2)]
    runs += [a_run("cbl", seed, 0.9, 0.8, 0.75 + 0.0001 * seed) for seed in range(2)]
    said, missing = sentences(study(*runs, arms=("standard", "cbl")))
    assert said.startswith("cbl differs from standard by +5.00 points (0 dB)")
    assert said.endswith("2 pairs; at 2 of 3 seeds it is a lead.")
    assert missing.startswith("Partial: 4 of 6 runs finished")


def test_studies_without_a_difference_seldom_show_one() -> None:
    rng, shown = np.random.default_rng(0), 0
    for _ in range(60):
        runs = [a_run(arm, seed, *(0.8 + rng.normal(0, 0.01, 3))) for arm in ("standard", *RIVALS) for seed in range(4)]
        shown += any("differs" in said for said in sentences(study(*runs, arms=("standard", *RIVALS))))
    assert shown <= 7


def test_the_released_code_has_its_own_baseline() -> None:
    runs = [a_run("as-released-standard", seed, 0.9, 0.8, 0.7) for seed in range(3)]
    runs += [a_run("as-released-cbl", seed, 0.9, 0.8, 0.7 + 0.001 * seed) for seed in range(3)]
    found = study(*runs, arms=("as-released-standard", "as-released-cbl"))
    (said,) = sentences(found)
    assert said.startswith("as-released-cbl against as-released-standard: no difference shown at any ratio")
    assert tables(found)[1].rows[0][0] == "as-released-cbl minus as-released-standard"
