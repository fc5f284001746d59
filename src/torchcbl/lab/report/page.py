"""The report as one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from matplotlib.figure import Figure

from torchcbl.lab.report import tables
from torchcbl.lab.report.findings import BASELINE, Findings
from torchcbl.lab.report.shell import captioned, paragraphs, write_page

_LINES = "Thin: single runs; thick: mean."
_CONFUSION = "<h2>By class</h2>\n{}\n{}"
_CAPTIONS = {
    "validation_loss": f"Validation loss of the answer y_T by epoch (the paper's Figure 2). {_LINES}",
    "validation_accuracy": f"Validation accuracy of the answer y_T by epoch (the paper's Figure 3). {_LINES}",
    "accuracy_by_step": f"Test accuracy of y_τ after each step; dashed: {BASELINE}, without steps. {_LINES}",
    "confusion": "Share of each true class (row) that is taken for each class (column), all seeds together.",
    "paired_differences": "Points per seed. An interval across 0 leaves both signs possible.",
}


def render(findings: Findings, figures: Mapping[str, Figure]) -> str:
    """Write the page: verdicts first, then results, figures, cost, recipe and surroundings.

    Args:
        findings: Of the study.
        figures: As `draw` returns them.

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
        verdicts=paragraphs(findings.verdicts),
        costs=paragraphs(findings.costs),
        results=tables.results(findings).as_html(),
        differences=tables.differences(findings).as_html() if findings.comparisons else "",
        paired_figure=sections.get("paired_differences", ""),
        learning=sections["validation_loss"] + sections["validation_accuracy"],
        steps_figure=sections["accuracy_by_step"],
        steps_table=tables.by_step(findings).as_html(),
        confusion=_CONFUSION.format(tables.balanced(findings).as_html(), sections["confusion"])
        if "confusion" in sections
        else "",
        cost=tables.cost(findings).as_html(),
        recipe=tables.recipe(findings).as_html(),
        surroundings=tables.surroundings(findings).as_html(),
    )
