"""The report's tables, worked out once and written as Markdown, HTML or plain text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape

from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.verdict import format_p
from torchcbl.lab.statistics import Comparison, Summary, summarise

NONE = "-"


@dataclass(frozen=True)
class Table:
    """A table of finished text: the first column names the row, the others hold its numbers.

    Args:
        title: What it shows, with units.
        header: Names of the columns.
        rows: One tuple per row, as long as `header`.
        words: Whether its cells hold words, which stand to the left and break into lines, rather than numbers.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: bool = False

    def as_markdown(self) -> str:
        """Write it as a GitHub-flavoured Markdown table under its title in bold."""
        marks = (":--", *(":--" if self.words else "--:" for _ in self.header[1:]))
        lines = [self.header, marks, *self.rows]
        return f"**{self.title}**\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    def as_html(self) -> str:
        """Write it as an HTML table that scrolls inside its own box."""
        head = "".join(f'<th scope="col">{_unbroken(cell)}</th>' for cell in self.header)
        body = "".join(f"<tr>{_html_cells(row)}</tr>\n" for row in self.rows)
        words = ' class="words"' if self.words else ""
        return (
            f'<p class="caption">{escape(self.title)}</p>\n'
            f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(self.title)}"><table{words}>\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )

    def as_text(self) -> str:
        """Write it in columns for a terminal."""
        lines = [self.header, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.header))]
        text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
        return "\n".join([self.title, text[0], "-" * (sum(widths) + 2 * len(widths) - 2), *text[1:]])


def results(findings: Findings) -> Table:
    """Table 1's form: test accuracy of every run, then mean and sample deviation."""
    samples = findings.records[0].test.n
    rows = []
    for arm in findings.arms:
        scores, runs = findings.scores(arm), findings.runs(arm)
        devices = dict.fromkeys(str(run.machine.get("device", NONE)) for run in runs)
        cells = [f"{scores[seed]:.2f}" if seed in scores else NONE for seed in findings.seeds]
        seconds = summarise([run.seconds["training"] for run in runs]).mean
        summary = findings.summaries[arm]
        rows.append((arm, *cells, spread(summary), str(summary.n), ", ".join(devices), f"{seconds:.0f}"))
    return Table(
        f"Test accuracy (%) on {samples:,} {findings.source.noun}s; {findings.label}",
        (
            "Model",
            *(f"Seed {seed}" for seed in findings.seeds),
            "Mean ± Std (sample)",
            "n",
            "Device",
            "Seconds",
        ),
        tuple(rows),
    )


def differences(findings: Findings) -> Table:
    """The paired differences to the baseline with intervals, tests and effect size."""
    header = (
        f"Minus {findings.baseline}|Mean|95% interval (t)|95% interval (bootstrap)|t (df)|p|p (Holm)"
        "|Wilcoxon p (smallest possible)|Effect size d_z (Hedges g)|By seed"
    )
    return Table(
        "Paired differences in test accuracy (points)",
        tuple(header.split("|")),
        tuple(_difference_row(comparison) for comparison in findings.comparisons),
    )


def by_step(findings: Findings) -> Table:
    """Test accuracy after every refinement step, mean and sample deviation over the seeds."""
    steps = max(len(record.test.accuracy) for record in findings.records)
    rows = []
    for arm in findings.arms:
        runs = findings.runs(arm)
        present = range(min(len(run.test.accuracy) for run in runs))
        cells = [spread(summarise([100 * run.test.accuracy[step] for run in runs])) for step in present]
        rows.append((arm, *cells, *[NONE] * (steps - len(cells))))
    return Table(
        "Test accuracy (%) by refinement step τ: mean ± sample deviation over the seeds",
        ("Model", *(f"τ = {step}" for step in range(steps))),
        tuple(rows),
    )


def balanced(findings: Findings) -> Table:
    """Balanced test accuracy after every refinement step; the records must have the confusion."""
    steps = max(len(record.test.accuracy) for record in findings.records)
    rows = []
    for arm in findings.arms:
        values = [run.test.balanced_accuracy or () for run in findings.runs(arm)]
        present = range(min(map(len, values)))
        cells = [spread(summarise([100 * value[step] for value in values])) for step in present]
        rows.append((arm, *cells, *[NONE] * (steps - len(cells))))
    return Table(
        "Balanced test accuracy (%), each class counting alike, by step τ: mean ± sample deviation over the seeds",
        ("Model", *(f"τ = {step}" for step in range(steps))),
        tuple(rows),
    )


def cost(findings: Findings) -> Table:
    """What every arm costs: parameters, FLOPs per image, training seconds, and ratios to the baseline."""
    header = (
        "Model|Parameters|of these added|MFLOPs, first pass|per further step|whole answer|ratio|Training seconds|ratio"
    )
    return Table(
        f"Cost per {findings.source.noun} and per run; ratios to {findings.baseline}",
        tuple(header.split("|")),
        tuple(_cost_row(findings, arm) for arm in findings.arms),
    )


def recipe(findings: Findings) -> Table:
    """The resolved recipe."""
    values = findings.recipe.as_dict() | {"arms": ", ".join(findings.recipe.arms)}
    rows = tuple((key, str(value).lower() if isinstance(value, bool) else str(value)) for key, value in values.items())
    return Table("Recipe", ("Key", "Value"), rows)


def surroundings(findings: Findings) -> Table:
    """Versions and machine; several values where the runs differ."""
    values = findings.distinct("versions") | findings.distinct("machine")
    return Table("Versions and machine", ("Key", "Value"), tuple(values.items()))


def spread(summary: Summary) -> str:
    """Write mean and sample deviation; the mean alone where there is one run.

    Example:
        >>> spread(summarise([78.0, 79.0, 80.0])), spread(summarise([78.0]))
        ('79.00 ± 1.00', '78.00')
    """
    return f"{summary.mean:.2f}" + (f" ± {summary.std:.2f}" if summary.std is not None else "")


def _difference_row(comparison: Comparison) -> tuple[str, ...]:
    test, wilcoxon = comparison.t_test, comparison.wilcoxon
    effect = NONE if comparison.d_z is None else f"{comparison.d_z:.2f}"
    if comparison.hedges_g is not None:
        effect += f" ({comparison.hedges_g:.2f})"
    return (
        comparison.treatment,
        NONE if comparison.mean is None else f"{comparison.mean:+.2f}",
        str(comparison.t_interval or NONE),
        str(comparison.bootstrap_interval or NONE),
        f"{test.t:.3f} ({test.degrees})" if test else NONE,
        _p(test.p if test else None),
        _p(comparison.p_holm),
        f"{wilcoxon.p:.3g} ({wilcoxon.smallest_p:.3g})" if wilcoxon else NONE,
        effect,
        " ".join(f"{difference:+.2f}" for difference in comparison.differences) or NONE,
    )


def _p(p: float | None) -> str:
    return NONE if p is None else format_p(p).removeprefix("= ")


def _cost_row(findings: Findings, arm: str) -> tuple[str, ...]:
    runs = findings.runs(arm)
    parameters, flops = runs[0].parameters, runs[0].flops
    seconds = summarise([run.seconds["training"] for run in runs])
    return (
        arm,
        f"{parameters['backbone'] + parameters['added']:,}",
        f"{parameters['added']:,}",
        *(f"{flops[key] / 1e6:,.2f}" for key in ("first", "step", "inference")),
        _ratio(findings.relative(arm, "inference")),
        f"{seconds.mean:.1f}" + (f" ± {seconds.std:.1f}" if seconds.std is not None else ""),
        _ratio(findings.relative(arm, "training")),
    )


def _ratio(value: float) -> str:
    return f"{value:.2f} x" if math.isfinite(value) else NONE


def _html_cells(row: tuple[str, ...]) -> str:
    return f'<th scope="row">{escape(row[0])}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])


def _unbroken(header: str) -> str:
    return escape(header).replace(" ", "&nbsp;" if len(header) < 9 else " ")
