"""What the loop adds beyond a control in plain words, which claim no more than the tests show."""

from __future__ import annotations

from torchcbl.lab.report.beyond.rows import SURE, Beyond, Control
from torchcbl.lab.report.families import PREFERRED
from torchcbl.lab.report.verdict import format_p, to_digits
from torchcbl.lab.statistics import Interval, Practical


def sentences(found: Beyond) -> list[str]:
    """Write one sentence per control, in the order of the table, then one per upper bound."""
    return [*map(sentence, found.controls), *map(bound, found.bounds)]


def sentence(control: Control) -> str:
    """Say what the treatment adds beyond one control, and how sure that is.

    Better or worse counts as shown where the t-test's p, corrected for all controls, is below 0.05; practically equal
    where the mean difference lies within the region of practical equivalence with a probability of 0.95.

    Args:
        control: As `beyond` returns it.

    Example:
        >>> from torchcbl.lab.statistics import compare, plan, practical
        >>> differences = (0.3, -0.1, 0.2, 0.1, 0.1)
        >>> scores, zeros = dict(enumerate(differences)), dict.fromkeys(range(5), 0.0)
        >>> comparison = compare(scores, zeros, names=("cbl", "no-context"))
        >>> print(sentence(Control("no-context", comparison, practical=practical(differences), plan=plan(differences))))
        Beyond no-context, the loop adds 0.12 points (95% -0.06 to 0.30, n = 5, p = 0.14): no difference shown;
        practically equal, within 0.5 points with probability 0.997.
    """
    comparison = control.comparison
    if comparison.mean is None:
        return f"Beyond {control.name}: cannot say, no seed is finished in both."
    if comparison.n == 1:
        return f"{_start(control)} in the only paired run: cannot say, {_one_run(control)}."
    if comparison.p_holm is None:
        return f"{_start(control)} in each of {comparison.n} paired runs: cannot say, no test without spread."
    correction = f" after Holm for {comparison.num_comparisons}" if comparison.num_comparisons > 1 else ""
    numbers = f"95% {comparison.t_interval}, n = {comparison.n}, p {format_p(comparison.p_holm)}{correction}"
    return f"{_start(control)} ({numbers}): {_outcome(control)}."


def bound(control: Control) -> str:
    """Say how far the treatment stays below an arm that is told the labels."""
    comparison = control.comparison
    if comparison.mean is None:
        return f"{control.name} (upper bound, told the labels): no seed is finished in both."
    where = "below" if comparison.mean <= 0 else "above"
    interval = f"95% {comparison.t_interval}, " if comparison.t_interval else ""
    return (
        f"{control.name} (upper bound, told the labels): {subject(comparison.treatment)} lies "
        f"{abs(comparison.mean):.2f} points {where} it ({interval}n = {comparison.n})."
    )


def subject(treatment: str) -> str:
    """Name the treatment in a sentence."""
    return "the loop" if treatment == PREFERRED else treatment


def _start(control: Control) -> str:
    comparison = control.comparison
    mean, loop = control.mean, subject(comparison.treatment)
    if mean > -0.005:
        return f"Beyond {control.name}, {loop} adds {max(mean, 0.0):.2f} points"
    return f"Against {control.name}, {loop} loses {-mean:.2f} points"


def _one_run(control: Control) -> str:
    text = "a test needs at least 2 paired seeds"
    if control.mcnemar is None:
        return text
    differ = "differ" if control.mcnemar.p < 0.05 else "are not shown to differ"
    return f"{text}; on data like these the two networks {differ} (McNemar p {format_p(control.mcnemar.p)})"


def _outcome(control: Control) -> str:
    if not control.comparison.difference_shown:
        return _not_shown(control) + _new_images(control)
    better = control.mean > 0
    how_much = _how_much(control.practical, better)
    return f"shown to be {'better' if better else 'worse'}{how_much}{_new_images(control)}{control.lead}"


def _not_shown(control: Control) -> str:
    found, needed = control.practical, control.plan_holm or control.plan
    if found is None or needed is None:
        return "no difference shown"
    if control.is_equal:
        return (
            f"no difference shown; practically equal, within {found.rope:g} points with probability "
            f"{_probability(found.equal)}"
        )
    return (
        f"{_sides(control.comparison.t_interval)}; better by more than {found.rope:g} points with probability "
        f"{_probability(found.better)}, worse with {_probability(found.worse)}; to see {needed.difference:g} points "
        f"needs {needed.seeds} seeds, {needed.seeds_cautious} to be safe"
    )


def _sides(interval: Interval | None) -> str:
    """Say which sign the interval leaves possible, where the correction lets none be shown."""
    if interval is None or interval.low < 0 < interval.high:
        return "no difference shown, and neither sign ruled out"
    return f"no difference shown after correction; a {'gain' if interval.high <= 0 else 'loss'} is all but ruled out"


def _how_much(found: Practical | None, better: bool) -> str:
    if found is None:
        return ""
    if found.equal >= SURE:
        return f", yet practically equal: within {found.rope:g} points with probability {_probability(found.equal)}"
    beyond_rope = found.better if better else found.worse
    by = f"by more than {found.rope:g} points with probability {_probability(beyond_rope)}"
    return f", {by}" if beyond_rope >= SURE else f"; whether by more than {found.rope:g} points is open ({by})"


def _new_images(control: Control) -> str:
    claimed = control.comparison.difference_shown or not control.is_equal
    sign, size = claimed and control.sign_open, control.size_open
    if not (sign or size):
        return ""
    what = "sign and size stay" if sign and size else "the sign stays" if sign else "the size stays"
    return f"; this holds for these test data, on new ones {what} open ({control.two_level})"


def _probability(value: float) -> str:
    """Write a probability: two digits, more near 0 and 1, which it never reaches, and where it would round to 0.95."""
    if value > 0.999:
        return "> 0.999"
    if value < 0.001:
        return "< 0.001"
    return to_digits(value, 3 if value > 0.99 or value < 0.01 else 2, SURE)
