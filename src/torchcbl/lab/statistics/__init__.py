"""Paired statistics: by seed, by image, and by both; corrected, with what is practically equal and what n could see."""

from torchcbl.lab.statistics.family import at_least, compare_all, compare_with_each, holm
from torchcbl.lab.statistics.images import McNemar, image_interval, mcnemar, two_level_interval
from torchcbl.lab.statistics.paired import (
    RESAMPLES,
    SIGNIFICANCE,
    Comparison,
    TTest,
    Wilcoxon,
    compare,
)
from torchcbl.lab.statistics.power import (
    Plan,
    plan,
    power,
    sd_limit,
    seeds_needed,
    smallest_difference,
)
from torchcbl.lab.statistics.practical import ROPE, Practical, practical
from torchcbl.lab.statistics.summary import Interval, Summary, summarise, t_interval

__all__ = [
    "RESAMPLES",
    "ROPE",
    "SIGNIFICANCE",
    "Comparison",
    "Interval",
    "McNemar",
    "Plan",
    "Practical",
    "Summary",
    "TTest",
    "Wilcoxon",
    "at_least",
    "compare",
    "compare_all",
    "compare_with_each",
    "holm",
    "image_interval",
    "mcnemar",
    "plan",
    "power",
    "practical",
    "sd_limit",
    "seeds_needed",
    "smallest_difference",
    "summarise",
    "t_interval",
    "two_level_interval",
]
