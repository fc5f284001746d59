"""The loop against each of its controls, worked out once for table, figure and sentences."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torchcbl.lab.records import run_name
from torchcbl.lab.report.beyond.answers import read_answers
from torchcbl.lab.report.families import OWN_FIRST_STEP, own_first_step
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.roles import arm_of, described_by, is_oracle, same_network, trains_first
from torchcbl.lab.report.verdict import shown_as_lead
from torchcbl.lab.statistics import (
    SIGNIFICANCE,
    Comparison,
    Interval,
    McNemar,
    Plan,
    Practical,
    compare,
    mcnemar,
    plan,
    practical,
    two_level_interval,
)

SURE = 0.95
"""Probability from which on a practical answer counts as shown."""

ReadAnswers = Callable[[str], NDArray[np.bool_] | None]
"""Maps a run's name to which samples it had right at every step, (T + 1, N); None where that was not measured."""


@dataclass(frozen=True)
class Control:
    """The treatment held against one control; what the data cannot carry is None.

    Args:
        name: The control's.
        comparison: Treatment minus control by seed, in points; p-values corrected over the controls.
        isolates: What a difference is evidence for.
        holds_equal: What the two have in common.
        two_level: 95% interval for new seeds on new images; needs what every run answered to every image.
        mcnemar: Where there is one pair: whether the two networks differ on images like these.
        practical: How probable it is that the treatment is worse, practically equal or better.
        plan: How many seeds a single test at 0.05 would need.
        plan_holm: The same at 0.05 / k, the worst that Holm's correction asks for.
        planned: Seeds of the study; what fewer of them show is called a lead.
    """

    name: str
    comparison: Comparison
    isolates: str = ""
    holds_equal: str = ""
    two_level: Interval | None = None
    mcnemar: McNemar | None = None
    practical: Practical | None = None
    plan: Plan | None = None
    plan_holm: Plan | None = None
    planned: int = 0

    @property
    def mean(self) -> float:
        """The mean difference in points, of at least one pair."""
        assert self.comparison.mean is not None
        return self.comparison.mean

    @property
    def lead(self) -> str:
        """What follows a difference that is shown: that it is a lead, while seeds are to come."""
        return shown_as_lead(self.comparison, self.planned)

    @property
    def is_equal(self) -> bool:
        """Whether the two are shown to be practically equal."""
        return self.practical is not None and self.practical.equal >= SURE

    @property
    def sign_open(self) -> bool:
        """Whether the sign that these test data leave is open on new ones."""
        here, new = self.comparison.t_interval, self.two_level
        return here is not None and new is not None and 0.0 not in here and 0.0 in new

    @property
    def size_open(self) -> bool:
        """Whether what is practically equal on these test data, or more than that, is open on new ones."""
        found, new = self.practical, self.two_level
        if found is None or new is None:
            return False
        if self.is_equal:
            return not -found.rope <= new.low <= new.high <= found.rope
        if not self.comparison.difference_shown:
            return False
        return (found.better >= SURE and new.low < found.rope) or (found.worse >= SURE and new.high > -found.rope)


@dataclass(frozen=True)
class Beyond:
    """One treatment and its controls.

    Args:
        treatment: The arm asked about.
        controls: By mean difference, the greatest first; those without a pair last.
        bounds: Arms that are told the labels: upper bounds, outside the family of tests.
        num_comparisons: Tests that the controls make together, those still to come included.
        noun: What a test sample is: "image", "clip".
        partial: What the study lacks; nothing where it is complete.
        first_trained: Whether y_0 has a share in the loss; without one the treatment's own step 0 is no control.
    """

    treatment: str
    controls: tuple[Control, ...]
    bounds: tuple[Control, ...]
    num_comparisons: int
    noun: str = "image"
    partial: str = ""
    first_trained: bool = True

    def find(self, name: str) -> Control | None:
        """Return the control of that name, if it is there."""
        return next((control for control in self.controls if control.name == name), None)


def beyond(findings: Findings) -> tuple[Beyond, ...]:
    """Hold each treatment of a study against its controls.

    The treatment is `cbl`, or the first loop that the recipe names; the loops of the released code are treatments of
    their own. Controls are all arms on the same network that are no loop themselves and are not told the labels, and
    the treatment's own step 0, read off the same runs, if y_0 was trained; a loop in place of `cbl` has the plain
    network alone, for the other controls are made after `cbl`.

    Args:
        findings: Of the study; in its folder, if it has one, lies what every run answered to every image, if that
            was measured.

    Returns:
        One entry per treatment that has a finished run; none in a study without a loop.
    """
    return tuple(_against_controls(findings, treatment) for treatment in findings.families)


def _against_controls(findings: Findings, treatment: str) -> Beyond:
    bounds = [arm for arm in findings.arms if is_oracle(arm) and same_network(arm, treatment)]
    scores = findings.scores(treatment)
    # the treatment's own files are asked for by every control
    read = None if findings.folder is None else functools.cache(functools.partial(read_answers, findings.folder))
    controls = [_control(findings, comparison, read) for comparison in findings.families[treatment]]
    return Beyond(
        treatment,
        tuple(sorted(controls, key=_by_difference)),
        tuple(_described(name, compare(scores, findings.scores(name), names=(treatment, name))) for name in bounds),
        len(controls),
        findings.source.noun,
        findings.progress if findings.missing else "",
        trains_first(treatment, findings.recipe),
    )


def _by_difference(control: Control) -> tuple[bool, float, str]:
    mean = control.comparison.mean
    return mean is None, -(mean or 0.0), control.name


def _described(name: str, comparison: Comparison) -> Control:
    own = name == own_first_step(comparison.treatment)
    arm = arm_of(OWN_FIRST_STEP) if own else described_by(name, comparison.treatment)
    if arm is None:
        return Control(name, comparison)
    return Control(name, comparison, isolates=arm.isolates, holds_equal=arm.holds_equal)


def _control(findings: Findings, comparison: Comparison, read: ReadAnswers | None) -> Control:
    described = _described(comparison.baseline, comparison)
    pair = _answers(findings, comparison, read)
    values = comparison.differences
    return Control(
        described.name,
        comparison,
        isolates=described.isolates,
        holds_equal=described.holds_equal,
        two_level=two_level_interval(*pair) if pair else None,
        mcnemar=mcnemar(pair[0][0], pair[1][0]) if pair and comparison.n == 1 else None,
        practical=practical(values),
        plan=plan(values),
        plan_holm=plan(values, alpha=SIGNIFICANCE / comparison.num_comparisons),
        planned=findings.recipe.seeds,
    )


def _answers(
    findings: Findings, comparison: Comparison, read: ReadAnswers | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]] | None:
    """Find which images treatment and control had right in the paired runs, (S, N) each, if all were measured."""
    if read is None or not comparison.n:
        return None
    own = comparison.baseline == own_first_step(comparison.treatment)
    control, step = (comparison.treatment, 0) if own else (comparison.baseline, -1)
    images = findings.records[0].test.n
    first = _stacked(read, comparison.treatment, comparison.seeds, -1, images)
    second = _stacked(read, control, comparison.seeds, step, images)
    return None if first is None or second is None else (first, second)


def _stacked(read: ReadAnswers, arm: str, seeds: Sequence[int], step: int, images: int) -> NDArray[np.bool_] | None:
    found = [read(run_name(arm, seed)) for seed in seeds]
    rows = [right[step] for right in found if right is not None and right.shape[1] == images]
    return np.stack(rows) if len(rows) == len(seeds) else None
