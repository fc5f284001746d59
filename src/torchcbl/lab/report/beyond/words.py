"""What the loop adds beyond a control in plain words, which claim no more than the tests show."""

from __future__ import annotations

from collections.abc import Sequence

from torchcbl.lab.report.beyond.rows import Beyond, Control
from torchcbl.lab.report.families import PREFERRED
from torchcbl.lab.report.findings import BASELINES
from torchcbl.lab.report.verdict import format_p
from torchcbl.lab.statistics import Comparison, Interval, Practical

SURE = 0.95
"""Probability from which on a practical answer counts as shown."""


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


def overall(found: Beyond) -> str:
    """Say which controls the treatment beats and which it does not: what explains its gain, if there is one."""
    loop = subject(found.treatment)
    shown = [control for control in found.controls if control.comparison.difference_shown]
    beaten = [control for control in shown if _mean(control.comparison) > 0]
    lost = [control for control in shown if control not in beaten]
    tested = [control for control in found.controls if control.comparison.p_holm is not None]
    unshown = [control for control in tested if control not in shown]
    untested = [control for control in found.controls if control not in tested]
    everything = not (unshown or lost or untested)  # the plain network included, which `_gain` names
    gain, parts = _gain(found, loop)
    beaten, unshown, lost = ([c for c in group if c.name not in BASELINES] for group in (beaten, unshown, lost))
    if beaten and everything:
        parts.append(f"It is shown to beat every control it was held against: {_listed(beaten)}.")
    elif beaten:
        parts.append(f"It is shown to beat {_listed(beaten)}.")
    if unshown:
        explains = f" {_common(unshown, loop)} may explain the gain." if gain else ""
        parts.append(f"It is not shown to beat {_listed(unshown)}.{explains}")
    if lost:
        explains = f" {_common(lost, loop)} would explain the gain." if gain else ""
        parts.append(f"It is shown to be worse than {_listed(lost)}.{explains}")
    if untested:
        parts.append(f"No test is possible yet against {_listed(untested)}.")
    return " ".join(parts)


def subject(treatment: str) -> str:
    """Name the treatment in a sentence."""
    return "the loop" if treatment == PREFERRED else treatment


def _gain(found: Beyond, loop: str) -> tuple[bool, list[str]]:
    """Say whether there is a gain to explain: over the plain network."""
    plain = next((control for control in found.controls if control.name in BASELINES), None)
    start = loop[0].upper() + loop[1:] if loop == "the loop" else loop
    if plain is None or plain.comparison.p_holm is None:
        return False, [f"{start}: whether there is a gain over the plain network has not been tested."]
    mean = _mean(plain.comparison)
    if not plain.comparison.difference_shown:
        return False, [f"{start} is not shown{_no_gain(plain)}."]
    if mean < 0:
        return False, [f"{start} scores {-mean:.2f} points below {plain.name}: there is no gain to explain."]
    return True, [f"{start} gains {mean:.2f} points over {plain.name}."]


def _no_gain(plain: Control) -> str:
    """Say which gain over the plain network is left possible where none is shown."""
    mean, interval, found = _signed(_mean(plain.comparison)), plain.comparison.t_interval, plain.practical
    assert interval is not None  # there was a test
    if interval.low >= 0:
        start, rest = f", after correction, to gain over {plain.name} ({mean} points, 95% {interval})", ""
    else:
        start = f" to gain anything over {plain.name} ({mean} points)"
        ruled_out = interval.high <= 0
        rest = ": a gain is all but ruled out" if ruled_out else f": a gain is not ruled out either (95% {interval})"
    if found is not None and _is_equal(plain):
        rest = f": any gain is within {found.rope:g} points"
        if _only_here(plain):
            rest += f" on these test data, and open on new ones (95% {plain.two_level})"
    return start + rest


def _common(controls: Sequence[Control], loop: str) -> str:
    return f"What {controls[0].name if len(controls) == 1 else 'any of these'} has in common with {loop}"


def _listed(controls: Sequence[Control]) -> str:
    return ", ".join(f"{control.name}{_aside(control)}" for control in controls)


def _aside(control: Control) -> str:
    """The mean difference in brackets, and whether it is practically none."""
    mean, found = control.comparison.mean, control.practical
    if mean is None:
        return ""
    equal = f", practically equal within {found.rope:g}" if found is not None and _is_equal(control) else ""
    here = " on these test data" if _only_here(control) else ""
    return f" ({_signed(mean)} points{equal}{here})"


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # never -0.00


def _is_equal(control: Control) -> bool:
    return control.practical is not None and control.practical.equal >= SURE


def _only_here(control: Control) -> bool:
    """Whether what is practically equal on these test data is open on new ones."""
    found, interval = control.practical, control.two_level
    if found is None or interval is None or not _is_equal(control):
        return False
    return not -found.rope <= interval.low <= interval.high <= found.rope


def _start(control: Control) -> str:
    comparison = control.comparison
    mean, loop = _mean(comparison), subject(comparison.treatment)
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
    better = _mean(control.comparison) > 0
    return f"shown to be {'better' if better else 'worse'}{_how_much(control.practical, better)}{_new_images(control)}"


def _not_shown(control: Control) -> str:
    found, needed = control.practical, control.plan_holm or control.plan
    if found is None or needed is None:
        return "no difference shown"
    if found.equal >= SURE:
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
        return "no difference shown and none ruled out"
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
    sign = control.comparison.difference_shown and control.two_level is not None and 0.0 in control.two_level
    size = _only_here(control)
    if not (sign or size):
        return ""
    what = "sign and size stay" if sign and size else "the sign stays" if sign else "the size stays"
    return f"; this holds for these test data, on new ones {what} open ({control.two_level})"


def _probability(value: float) -> str:
    """Write a probability: two digits, more near 0 and 1, which it never reaches."""
    if value > 0.999:
        return "> 0.999"
    if value < 0.001:
        return "< 0.001"
    return f"{value:.3f}" if value > 0.99 or value < 0.01 else f"{value:.2f}"


def _mean(comparison: Comparison) -> float:
    assert comparison.mean is not None
    return comparison.mean
