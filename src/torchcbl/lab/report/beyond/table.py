"""The controls as tables: HTML for the page, Markdown for docs."""

from __future__ import annotations

from collections.abc import Sequence

from torchcbl.lab.report.beyond.gain import overall
from torchcbl.lab.report.beyond.rows import SURE, Beyond, Control, beyond
from torchcbl.lab.report.beyond.words import sentences, subject
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.tables import NONE, Table
from torchcbl.lab.report.verdict import format_p, to_digits
from torchcbl.lab.statistics import ROPE, Plan, Practical
from torchcbl.lab.statistics.power import WANTED


def table(found: Beyond) -> Table:
    """What the treatment adds beyond each control, the greatest difference first; upper bounds last."""
    header = (
        f"Beyond|n|Mean|95% interval (seeds)|95% interval (seeds and {found.noun}s)|p|p (Holm)"
        f"|Effect size d_z (Hedges g)|P(worse / equal / better)"
        f"|Seeds for {WANTED:g} points (safe)|the same, Holm|Smallest seen with n"
    )
    rows = [_row(control) for control in found.controls]
    rows += [(f"{control.name} (bound)", *_row(control)[1:5], *[NONE] * 7) for control in found.bounds]
    return Table(
        f"What {subject(found.treatment)} adds, in points of test accuracy; equal: within {ROPE:g} points",
        tuple(header.split("|")),
        tuple(rows),
    )


def controls_table(found: Beyond) -> Table:
    """What each control holds equal, and what a difference to it is evidence for."""
    return Table(
        "What the controls are",
        ("Control", "A difference isolates", "Held equal"),
        tuple((c.name, c.isolates or NONE, c.holds_equal or NONE) for c in (*found.controls, *found.bounds)),
        words=True,
    )


def markdown(found: Findings | Sequence[Beyond]) -> str:
    """Write tables and sentences of all treatments as Markdown; empty where a study has no loop.

    Args:
        found: The findings of a study, or what `beyond` made of them.
    """
    return "\n".join(_markdown(one) for one in (beyond(found) if isinstance(found, Findings) else found))


def _markdown(found: Beyond) -> str:
    said = "".join(f"- {text}\n" for text in sentences(found))
    start = [f"{found.partial}\n"] if found.partial else []
    tables = table(found).as_markdown(), controls_table(found).as_markdown()
    return "\n".join([*start, f"{overall(found)}\n", tables[0], said, tables[1]])


def _row(control: Control) -> tuple[str, ...]:
    comparison, found = control.comparison, control.practical
    effect = NONE if comparison.d_z is None else f"{comparison.d_z:.2f}"
    if comparison.hedges_g is not None:
        effect += f" ({comparison.hedges_g:.2f})"
    return (
        control.name,
        str(comparison.n),
        NONE if comparison.mean is None else f"{comparison.mean:+.2f}",
        str(comparison.t_interval or NONE),
        str(control.two_level or NONE),
        _p(comparison.t_test.p if comparison.t_test else None),
        _p(comparison.p_holm),
        effect,
        NONE if found is None else _probabilities(found),
        _seeds(control.plan),
        _seeds(control.plan_holm),
        NONE if control.plan is None else f"{control.plan.smallest:.2f}",
    )


def _probabilities(found: Practical) -> str:
    return " / ".join(to_digits(value, 2, SURE) for value in (found.worse, found.equal, found.better))


def _seeds(plan: Plan | None) -> str:
    return NONE if plan is None else f"{plan.seeds} ({plan.seeds_cautious})"


def _p(p: float | None) -> str:
    return NONE if p is None else format_p(p).removeprefix("= ")
