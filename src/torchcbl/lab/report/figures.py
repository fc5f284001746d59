"""The report's figures: every run thin, means thick, one colour per arm, titles that say what to see."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from torchcbl.lab.recipe import ARM_NAMES
from torchcbl.lab.records import EpochRecord
from torchcbl.lab.report.confusion import draw_confusion
from torchcbl.lab.report.drawing import INK, MARKERS, PALETTE, canvas, legend, styled, title
from torchcbl.lab.report.findings import BASELINE, Findings
from torchcbl.lab.statistics import Comparison

Curve = NDArray[np.float64]


def draw(findings: Findings) -> dict[str, Figure]:
    """Draw all figures of a study.

    Returns:
        Figures by the name of their file; without paired runs there is none of differences, and in studies of earlier
        versions none of confusion.
    """
    with styled():
        figures = {
            "validation_loss": _learning(findings, "loss"),
            "validation_accuracy": _learning(findings, "accuracy"),
            "accuracy_by_step": _by_step(findings),
        }
        if any(comparison.n for comparison in findings.comparisons):
            figures["paired_differences"] = _differences(findings)
        if findings.has_confusion:
            figures["confusion"] = draw_confusion(findings)
    return figures


def colour(arm: str) -> str:
    """Return the colour of an arm, the same in every figure of every study."""
    return PALETTE[place(arm)]


def place(arm: str) -> int:
    """Return where an arm stands in palette and markers."""
    index = ARM_NAMES.index(arm) if arm in ARM_NAMES else sum(arm.encode())
    return index % len(PALETTE)


def _learning(findings: Findings, what: str) -> Figure:
    """Figures 2 and 3 of the paper: validation loss or accuracy of the answer y_T by epoch."""
    figure, axes = canvas()
    read: Callable[[EpochRecord], float] = _read_loss if what == "loss" else _read_accuracy
    last = {}
    for arm in findings.arms:
        runs = [np.array([read(epoch) for epoch in run.epochs]) for run in findings.runs(arm)]
        epochs = np.arange(1.0, 1 + min(map(len, runs)))
        curves = np.array([run[: len(epochs)] for run in runs])
        last[arm] = _plot_runs(axes, arm, epochs, curves)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    unit, better, form = ("nats", "lower", ".3f") if what == "loss" else ("%", "higher", ".2f")
    axes.set_ylabel(f"Validation {what} ({unit})")
    title(axes, f"Validation {what} by epoch: {better} is better", _ending(last, form, unit))
    legend(figure, axes)
    return figure


def _read_loss(epoch: EpochRecord) -> float:
    return epoch.validation_loss[-1]


def _read_accuracy(epoch: EpochRecord) -> float:
    return 100 * epoch.validation_accuracy[-1]


def _plot_runs(axes: Axes, arm: str, x: Curve, curves: Curve) -> float:
    """Draw all runs thin, their mean thick (it breaks off where a run is not finite); return its end."""
    marker = MARKERS[place(arm)]
    mean = curves.mean(axis=0)
    for curve in curves if len(curves) > 1 else ():
        axes.plot(x, curve, color=colour(arm), linewidth=0.8, alpha=0.45, marker="." if x.size == 1 else "")
    gap = max(1, x.size // 6)  # markers of different arms stand apart, so that no curve hides another's
    axes.plot(
        x,
        mean,
        color=colour(arm),
        linewidth=2.2,
        marker=marker,
        markersize=5,
        markevery=(place(arm) % gap, gap),
        label=f"{arm}, n = {len(curves)}",
    )
    return float(mean[-1])


def _ending(last: dict[str, float], form: str, unit: str) -> str:
    unit = "%" if unit == "%" else ""
    values = {arm: f"{value:{form}}{unit}" if np.isfinite(value) else "not finite" for arm, value in last.items()}
    return _wrapped("Last epoch: ", [f"{arm} {value}" for arm, value in values.items()])


def _wrapped(start: str, parts: Sequence[str]) -> str:
    """Join by commas, with a line break before what would run out of the figure."""
    return textwrap.fill(start + ", ".join(part.replace(" ", "\0") for part in parts), 62).replace("\0", " ")


def _by_step(findings: Findings) -> Figure:
    figure, axes = canvas()
    moved = []
    for arm in findings.arms:
        runs = [100 * np.array(run.test.accuracy) for run in findings.runs(arm)]
        curves = np.array([run[: min(map(len, runs))] for run in runs])
        if curves.shape[1] == 1:
            _plot_level(axes, arm, curves[:, 0])
            continue
        end = _plot_runs(axes, arm, np.arange(float(curves.shape[1])), curves)
        moved.append(f"{arm} {curves[:, 0].mean():.2f} to {end:.2f}%")
    axes.set_xlabel("Refinement step τ")
    axes.set_ylabel("Test accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    title(axes, "Does refining help? A rising line says yes", _wrapped("", moved))
    legend(figure, axes)
    return figure


def _plot_level(axes: Axes, arm: str, scores: Curve) -> None:
    for score in scores if scores.size > 1 else ():
        axes.axhline(float(score), color=colour(arm), linewidth=0.8, alpha=0.45)
    label = f"{arm}, n = {scores.size}"
    axes.axhline(float(scores.mean()), color=colour(arm), linewidth=2.2, linestyle="--", label=label)


def _differences(findings: Findings) -> Figure:
    comparisons = [comparison for comparison in findings.comparisons if comparison.n]
    figure, axes = canvas(1.9 + 0.6 * len(comparisons))
    for row, comparison in enumerate(comparisons):
        _plot_difference(axes, row, comparison)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(comparisons)), [comparison.treatment for comparison in comparisons])
    axes.set_ylim(len(comparisons) - 0.5, -0.5)
    axes.set_xlabel(f"Test accuracy minus {BASELINE}, same seed (points)")
    title(axes, "Upper row: mean and 95% interval; lower row: every seed", _shown(comparisons))
    return figure


def _shown(comparisons: Sequence[Comparison]) -> str:
    if not any(comparison.t_test for comparison in comparisons):
        return "No test possible"
    shown = [comparison.treatment for comparison in comparisons if comparison.difference_shown]
    return _wrapped("Difference shown for: ", shown) if shown else "No difference shown"


def _plot_difference(axes: Axes, row: int, comparison: Comparison) -> None:
    arm, n = comparison.treatment, comparison.n
    marker = MARKERS[place(arm)]
    heights = row + 0.12 + 0.12 * (np.arange(n) % 2)  # two levels, so that near-equal runs stay apart
    axes.scatter(comparison.differences, heights, color=colour(arm), marker=marker, alpha=0.55, s=26)
    mean = float(np.mean(comparison.differences))
    axes.scatter([mean], [row - 0.15], color=colour(arm), marker=marker, s=80)
    if comparison.t_interval:
        low, high = comparison.t_interval.low, comparison.t_interval.high
        axes.plot([low, high], [row - 0.15] * 2, color=colour(arm), linewidth=2.2)
