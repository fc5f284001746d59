"""What explains a loop's gain over the plain network, if there is one, in a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from torchcbl.lab.report.beyond.rows import Beyond, Control
from torchcbl.lab.report.beyond.words import subject
from torchcbl.lab.report.families import BASELINES


def overall(found: Beyond) -> str:
    """Say which controls the treatment beats and which it does not: what explains its gain, if there is one."""
    loop = subject(found.treatment)
    shown = [control for control in found.controls if control.comparison.difference_shown]
    beaten = [control for control in shown if control.mean > 0]
    lost = [control for control in shown if control not in beaten]
    tested = [control for control in found.controls if control.comparison.p_holm is not None]
    unshown = [control for control in tested if control not in shown]
    untested = [control for control in found.controls if control not in tested]
    waiting = [control for control in untested if control.comparison.n < max(2, control.planned)]
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
    for group, yet in ((waiting, " yet"), ([one for one in untested if one not in waiting], "")):
        if group:
            parts.append(f"No test is possible{yet} against {_listed(group)}.")
    if any(control.lead for control in shown):
        parts.append(f"What is shown is a lead: {shown[0].planned} seeds are planned.")
    if not found.first_trained:
        parts.append("Its own step 0 is no control: it was trained on later answers alone.")
    return " ".join(parts)


def _gain(found: Beyond, loop: str) -> tuple[bool, list[str]]:
    """Say whether there is a gain to explain: over the plain network."""
    plain = next((control for control in found.controls if control.name in BASELINES), None)
    start = loop[0].upper() + loop[1:] if loop == "the loop" else loop
    if plain is None or plain.comparison.p_holm is None:
        return False, [f"{start}: whether there is a gain over the plain network has not been tested."]
    mean = plain.mean
    if not plain.comparison.difference_shown:
        return False, [f"{start} is not shown{_no_gain(plain)}."]
    if mean < 0:
        return False, [f"{start} scores {-mean:.2f} points below {plain.name}: there is no gain to explain."]
    aside = f" ({caveat})" if (caveat := _caveat(plain)) else ""
    return True, [f"{start} gains {mean:.2f} points over {plain.name}{aside}."]


def _no_gain(plain: Control) -> str:
    """Say which gain over the plain network is left possible where none is shown."""
    mean, interval, found = _signed(plain.mean), plain.comparison.t_interval, plain.practical
    assert interval is not None  # there was a test
    ruled_out, equal = interval.high <= 0, found is not None and plain.is_equal
    if interval.low >= 0:
        start, rest = f", after correction, to gain over {plain.name} ({mean} points, 95% {interval})", ""
    else:
        start = f" to gain anything over {plain.name} ({mean} points)"
        rest = ": a gain is all but ruled out" if ruled_out else f": a gain is not ruled out either (95% {interval})"
    if found is not None and equal:
        rest = f": any gain is within {found.rope:g} points"
    if plain.size_open if equal else ruled_out and plain.sign_open:
        rest += f" on these test data, and open on new ones (95% {plain.two_level})"
    return start + rest


def _common(controls: Sequence[Control], loop: str) -> str:
    return f"What {controls[0].name if len(controls) == 1 else 'any of these'} has in common with {loop}"


def _listed(controls: Sequence[Control]) -> str:
    return ", ".join(f"{control.name}{_aside(control)}" for control in controls)


def _aside(control: Control) -> str:
    """The mean difference in brackets, whether it is practically none, and whether that holds for other data."""
    mean = control.comparison.mean
    if mean is None:
        return ""
    caveat = _caveat(control)
    return f" ({_signed(mean)} points{f', {caveat}' if caveat else ''})"


def _caveat(control: Control) -> str:
    found = control.practical
    said = f"practically equal within {found.rope:g}" if found is not None and control.is_equal else ""
    if said and control.size_open:
        said += " on these test data"
    if control.comparison.difference_shown and control.sign_open:
        said += f"{', ' if said else ''}sign open on new ones, {control.two_level}"
    return said


def _signed(value: float) -> str:
    return f"{round(value, 2) + 0.0:+.2f}"  # never -0.00
