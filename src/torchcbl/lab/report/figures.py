"""The report's figures: every run thin, means thick, one look per arm, titles that say what to see."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from torchcbl.lab.report.confusion import draw_confusion
from torchcbl.lab.report.drawing import styled, wrapped
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.forest import Line, draw_forest
from torchcbl.lab.report.learning import arms_in_panels, draw_convergence, draw_learning
from torchcbl.lab.report.looks import MANY, colour, marker, place
from torchcbl.lab.report.steps import draw_by_step
from torchcbl.lab.statistics import Comparison

__all__ = ["colour", "draw", "marker", "place"]


def draw(findings: Findings) -> dict[str, Figure]:
    """Draw all figures of a study but those of the controls (`draw_beyond`).

    Returns:
        Figures by the name of their file; without paired runs there is none of differences, without steps none of
        convergence, and in studies of earlier versions none of confusion.
    """
    with styled():
        figures = {
            "validation_loss": draw_learning(findings, "loss"),
            "validation_accuracy": draw_learning(findings, "accuracy"),
            "accuracy_by_step": draw_by_step(findings),
        }
        if arms_in_panels(findings):
            figures["convergence_loss"] = draw_convergence(findings, "loss")
            figures["convergence_accuracy"] = draw_convergence(findings, "accuracy")
        if any(comparison.n for comparison in findings.comparisons):
            figures["paired_differences"] = _differences(findings)
        if findings.has_confusion:
            figures["confusion"] = draw_confusion(findings)
    return figures


def _differences(findings: Findings) -> Figure:
    comparisons = [comparison for comparison in findings.comparisons if comparison.n]
    return draw_forest(
        [Line(one.treatment, one.treatment, one.differences, one.t_interval) for one in comparisons],
        f"Upper row: mean and 95% interval; lower row: every seed\n{_shown(comparisons)}",
        f"Test accuracy minus {findings.baseline}, same seed (points)",
    )


def _shown(comparisons: Sequence[Comparison]) -> str:
    tested = [comparison for comparison in comparisons if comparison.t_test]
    if not tested:
        return "No test possible"
    shown = [comparison.treatment for comparison in tested if comparison.difference_shown]
    if len(tested) > MANY:
        return f"Difference shown for {len(shown)} of {len(tested)}"
    return wrapped("Difference shown for: ", shown) if shown else "No difference shown"
