"""Test accuracy by refinement step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from torchcbl.lab.report.drawing import INK, canvas, legend, panels, title, wrapped
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.learning import plot_runs
from torchcbl.lab.report.looks import MANY, colour
from torchcbl.lab.report.roles import is_oracle, trains_first

Curve = NDArray[np.float64]


def draw_by_step(findings: Findings) -> Figure:
    """Draw test accuracy by refinement step: all arms in one figure; of many, a panel for each that has steps."""
    by_arm = {arm: _by_step(findings, arm) for arm in findings.arms}
    with_steps = {arm: found for arm, found in by_arm.items() if found.shape[1] > 1}
    if len(by_arm) > MANY and with_steps:
        return _in_panels(findings, with_steps)
    figure, axes = canvas()
    moved = []
    for arm, found in by_arm.items():
        if arm not in with_steps:
            _plot_level(axes, arm, found[:, 0])
            continue
        end = plot_runs(axes, arm, np.arange(float(found.shape[1])), found)
        moved.append(f"{arm} {found[:, 0].mean():.2f} to {end:.2f}%")
    axes.set_xlabel("Refinement step τ")
    axes.set_ylabel("Test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    title(axes, _headline(findings, list(with_steps)), wrapped("", moved))
    legend(figure, axes)
    return figure


def _by_step(findings: Findings, arm: str) -> Curve:
    runs = [100 * np.array(run.test.accuracy) for run in findings.runs(arm)]
    steps = min(map(len, runs))
    found: Curve = np.array([run[:steps] for run in runs])
    return found


def _in_panels(findings: Findings, with_steps: dict[str, Curve]) -> Figure:
    """Give every arm its panel; all have one scale but those that are told the labels."""
    figure, all_axes = panels(len(with_steps), "Refinement step τ", "Test accuracy (%)", sharey=False)
    level = np.mean(list(findings.scores(findings.baseline).values())) if findings.baseline in findings.arms else np.nan
    fair = [found for arm, found in with_steps.items() if not is_oracle(arm)]
    for axes, (arm, found) in zip(all_axes, with_steps.items(), strict=True):
        plot_runs(axes, arm, np.arange(float(found.shape[1])), found)
        if not is_oracle(arm):
            values = np.concatenate([*(other.ravel() for other in fair), [level]])
            margin = 0.08 * float(np.nanmax(values) - np.nanmin(values)) or 1.0
            axes.set_ylim(float(np.nanmin(values)) - margin, float(np.nanmax(values)) + margin)
        axes.axhline(float(level), color=INK, linewidth=1.0, linestyle="--")
        change = found[:, -1].mean() - found[:, 0].mean()
        axes.set_title(f"{arm}: {change:+.2f}", fontsize=8, loc="left")
    figure.suptitle(
        f"{_headline(findings, list(with_steps))}; above each panel: points from the first step to the last",
        fontsize=10,
        x=0.01,
        ha="left",
    )
    return figure


def _headline(findings: Findings, arms: Sequence[str]) -> str:
    """Say what a rising line means: nothing, where y_0 has no share in the loss."""
    untrained = [arm for arm in arms if not trains_first(arm, findings.recipe)]
    asked = "Does refining help? A rising line says yes"
    if not untrained:
        return asked
    if len(untrained) == len(arms):
        return "Accuracy by step; y_0 was not trained to answer"
    return f"{asked},\nbut not of {', '.join(untrained)}: y_0 was not trained"


def _plot_level(axes: Axes, arm: str, scores: Curve) -> None:
    for score in scores if scores.size > 1 else ():
        axes.axhline(float(score), color=colour(arm), linewidth=0.8, alpha=0.45)
    label = f"{arm}, n = {scores.size}"
    axes.axhline(float(scores.mean()), color=colour(arm), linewidth=2.2, linestyle="--", label=label)
