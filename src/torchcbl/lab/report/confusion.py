"""Which classes are taken for which, at every step."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from torchcbl.lab.report.drawing import INK, grid
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.looks import MANY

_MOST_LABELS = 12
_PANEL = 1.9


def draw_confusion(findings: Findings) -> Figure:
    """Draw a confusion matrix for each arm (row) and step tau (column), all seeds together; of many arms y_T alone."""
    matrices = {arm: confusion(findings, arm) for arm in findings.arms}
    if len(matrices) > MANY:
        return _last_steps(findings, matrices)
    steps = max(len(matrix) for matrix in matrices.values())
    figure, panels = grid(len(matrices), steps, _PANEL)
    for row, (arm, matrix) in enumerate(matrices.items()):
        for step in range(steps):
            panel = panels[row][step]
            if step < len(matrix):
                _draw(panel, matrix[step], findings.classes)
                panel.set_title(f"{arm}, τ = {step}", fontsize=8, loc="left")
            else:
                panel.set_axis_off()
        panels[row][0].set_ylabel("true class", fontsize=8)
    figure.suptitle(_worst(findings, matrices), fontsize=9, x=0.01, ha="left")
    return figure


def _last_steps(findings: Findings, matrices: dict[str, NDArray[np.int64]]) -> Figure:
    columns = 4
    figure, panels = grid(-(-len(matrices) // columns), columns, _PANEL)
    places = [panel for row in panels for panel in row]
    for panel, (arm, matrix) in zip(places, matrices.items(), strict=False):
        _draw(panel, matrix[-1], findings.classes)
        panel.set_title(arm, fontsize=7, loc="left")
    for unused in places[len(matrices) :]:
        unused.set_axis_off()
    figure.supylabel("true class", fontsize=8)
    figure.suptitle(_worst(findings, matrices), fontsize=9, x=0.01, ha="left")
    return figure


def confusion(findings: Findings, arm: str) -> NDArray[np.int64]:
    """Sum the confusion of all runs of an arm, (T + 1, K, K)."""
    counts: NDArray[np.int64] = np.array([run.test.confusion for run in findings.runs(arm)]).sum(axis=0)
    return counts


def _draw(panel: Axes, counts: NDArray[np.int64], classes: tuple[str, ...]) -> None:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    panel.grid(visible=False)
    few = len(classes) <= _MOST_LABELS
    panel.set_xticks(range(len(classes)) if few else [], classes if few else [], rotation=90, fontsize=6)
    panel.set_yticks(range(len(classes)) if few else [], classes if few else [], fontsize=6)
    if len(classes) <= _MOST_LABELS // 2:
        for (row, column), share in np.ndenumerate(shares):
            tone = "white" if share > 0.5 else INK
            panel.text(column, row, f"{100 * share:.0f}", ha="center", va="center", fontsize=5, color=tone)


def _worst(findings: Findings, matrices: dict[str, NDArray[np.int64]]) -> str:
    """Say which two classes the answers confuse most."""
    last = {arm: matrix[-1] * (1 - np.eye(len(findings.classes), dtype=np.int64)) for arm, matrix in matrices.items()}
    arm = max(last, key=lambda name: int(last[name].max()))
    row, column = np.unravel_index(int(last[arm].argmax()), last[arm].shape)
    share = 100 * last[arm][row, column] / max(1, matrices[arm][-1][row].sum())
    names = findings.classes
    return f"Confusion (% of a row): most often '{names[row]}' for '{names[column]}', {share:.1f}% in {arm}"
