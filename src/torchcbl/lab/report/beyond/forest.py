"""The controls as a forest plot."""

from __future__ import annotations

from matplotlib.figure import Figure

from torchcbl.lab.report.beyond.rows import Beyond
from torchcbl.lab.report.beyond.words import subject
from torchcbl.lab.report.drawing import styled
from torchcbl.lab.report.forest import Line, draw_forest
from torchcbl.lab.statistics import ROPE


def draw_beyond(found: Beyond) -> Figure | None:
    """Draw the treatment's difference to each control that shares a seed with it, in the order of the table.

    Returns:
        The figure; None where no control shares a seed.
    """
    paired = [control for control in found.controls if control.comparison.n]
    if not paired:
        return None
    lines = [Line(c.name, c.name, c.comparison.differences, c.comparison.t_interval, c.two_level) for c in paired]
    with styled():
        return draw_forest(
            lines,
            f"{_title(found)}\nRight of 0: {subject(found.treatment)} is better; shaded: practically equal",
            f"{found.treatment} minus control, test accuracy of the same seed (points)",
            ROPE,
        )


def _title(found: Beyond) -> str:
    tested = [control for control in found.controls if control.comparison.p_holm is not None]
    if not tested:
        return "No test possible yet"
    better = [c for c in tested if c.comparison.difference_shown and (c.comparison.mean or 0.0) > 0]
    loop = subject(found.treatment)
    start = "The loop" if loop == "the loop" else loop
    leads = " (leads: seeds are to come)" if any(c.lead for c in better) else ""
    return f"{start} is shown to beat {len(better)} of {len(tested)} controls{leads}"
