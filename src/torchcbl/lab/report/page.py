"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from matplotlib.figure import Figure

from torchcbl.lab.report import tables
from torchcbl.lab.report.beyond import Beyond, controls_table, overall, sentences, table
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.looks import MANY
from torchcbl.lab.report.shell import captioned, paragraphs, write_page

_LINES = "Thin: single runs; thick: mean."
_BANDS = "Lines: mean over the seeds; bands: lowest to highest run; dashed: the baseline."
_CONFUSION = "<h2>By class</h2>\n{}\n{}"
_BEYOND = '{figure}\n{table}\n<div class="said">\n{said}\n</div>\n{controls}'
_NO_LOOP = "<p>No finished run with a loop: nothing to hold against controls.</p>"
_FOLDED = "<details><summary>{}</summary>\n{}\n</details>"
_CAPTIONS = {
    "validation_loss": f"Validation loss of the answer y_T by epoch (the paper's Figure 2). {_LINES}",
    "validation_accuracy": f"Validation accuracy of the answer y_T by epoch (the paper's Figure 3). {_LINES}",
    "convergence_loss": f"Validation loss of every y_τ by epoch. {_BANDS}",
    "convergence_accuracy": f"Validation accuracy of every y_τ by epoch. {_BANDS}",
    "accuracy_by_step": f"Test accuracy of y_τ after each step; dashed: without steps. {_LINES}",
    "confusion": "Share of each true class (row) that is taken for each class (column), all seeds together.",
    "paired_differences": "Points per seed. An interval across 0 leaves both signs possible.",
}


def render(
    findings: Findings,
    figures: Mapping[str, Figure],
    controls: Sequence[Beyond] = (),
    forests: Mapping[str, Figure] | None = None,
) -> str:
    """Write the page: verdicts first, then results, controls, figures, cost, recipe and surroundings.

    Args:
        findings: Of the study.
        figures: As `draw` returns them.
        controls: As `beyond` returns them.
        forests: A figure for each of `controls` that has one, by the name of the treatment.

    Returns:
        HTML with the figures inside, without any reference to another file or address.
    """
    sections = {name: captioned(name, figure, _CAPTIONS[name]) for name, figure in figures.items()}
    return write_page(
        f"{findings.recipe.name}: with and without feedback",
        "study.html",
        label=escape(findings.label),
        progress=escape(findings.progress),
        progress_class="partial" if findings.missing else "complete",
        overall=paragraphs(overall(found) for found in controls if _has_controls(found)),
        verdicts=_folded(f"Every arm against {findings.baseline}", findings.verdicts),
        costs=_folded("What they cost", findings.costs),
        beyond="\n".join(_beyond(found, (forests or {}).get(found.treatment)) for found in controls) or _NO_LOOP,
        results=tables.results(findings).as_html(),
        differences=tables.differences(findings).as_html() if findings.comparisons else "",
        paired_figure=sections.get("paired_differences", ""),
        learning=sections["validation_loss"] + sections["validation_accuracy"],
        convergence=sections.get("convergence_loss", "") + sections.get("convergence_accuracy", ""),
        steps_class="pair" if len(findings.arms) <= MANY else "stack",
        baseline=findings.baseline,
        noun=findings.source.noun,
        steps_figure=sections["accuracy_by_step"],
        steps_table=tables.by_step(findings).as_html(),
        confusion=_CONFUSION.format(tables.balanced(findings).as_html(), sections["confusion"])
        if "confusion" in sections
        else "",
        cost=tables.cost(findings).as_html(),
        recipe=tables.recipe(findings).as_html(),
        surroundings=tables.surroundings(findings).as_html(),
    )


def _has_controls(found: Beyond) -> bool:
    """Whether there is more to say than against the baseline, which the verdicts do."""
    open_ = any(control.sign_open or control.size_open for control in found.controls)
    return len(found.controls) > 1 or not found.first_trained or open_


def _beyond(found: Beyond, forest: Figure | None) -> str:
    caption = f"Thick: 95% interval over seeds; thin: over seeds and {found.noun}s, where measured; small: every seed."
    return _BEYOND.format(
        figure=captioned(f"beyond-{found.treatment}", forest, caption) if forest else "",
        table=table(found).as_html(),
        said=paragraphs(sentences(found)),
        controls=controls_table(found).as_html(),
    )


def _folded(summary: str, lines: Sequence[str]) -> str:
    """Write sentences; many of them fold away behind a summary."""
    text = paragraphs(lines)
    return text if len(lines) < MANY else _FOLDED.format(escape(summary), text)
