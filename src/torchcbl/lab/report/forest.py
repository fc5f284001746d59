"""A forest plot: a row per comparison with its mean, its intervals and every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchcbl.lab.report.drawing import INK, wide_canvas
from torchcbl.lab.report.looks import colour, marker
from torchcbl.lab.statistics import Interval

_FAR = 4.0


@dataclass(frozen=True)
class Line:
    """A row of the plot.

    Args:
        label: Its name on the axis.
        arm: The arm whose colour and marker it has.
        points: One difference per seed, in points.
        interval: 95% interval of the mean, drawn thick.
        outer: Another interval, drawn thin.
    """

    label: str
    arm: str
    points: Sequence[float]
    interval: Interval | None
    outer: Interval | None = None

    @property
    def mean(self) -> float:
        """Mean of the points."""
        return float(np.mean(self.points))


def draw_forest(lines: Sequence[Line], title: str, xlabel: str, rope: float | None = None) -> Figure:
    """Draw rows from top to bottom; what lies far out is pointed to, so that it does not flatten the others.

    Args:
        lines: The rows, each with at least one point.
        title: What to see, one or two lines.
        xlabel: What the axis measures, with unit.
        rope: Half the width of the region of practical equivalence, shaded; none without.
    """
    figure, axes = wide_canvas(1.5 + 0.48 * len(lines))
    for row, line in enumerate(lines):
        _draw_line(axes, row, line)
    axes.axvline(0, color=INK, linewidth=1)
    if rope is not None:
        axes.axvspan(-rope, rope, color=INK, alpha=0.08, linewidth=0)
    axes.set_yticks(range(len(lines)), [line.label for line in lines])
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlabel(xlabel)
    low, high = _limits(lines, rope or 0.0)
    axes.set_xlim(low, high)
    for row, line in enumerate(lines):
        _point_outside(axes, row, line, low, high)
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    return figure


def _draw_line(axes: Axes, row: int, line: Line) -> None:
    shade, mark = colour(line.arm), marker(line.arm)
    heights = row + 0.12 + 0.12 * (np.arange(len(line.points)) % 2)  # two levels, so that near-equal runs stay apart
    axes.scatter(line.points, heights, color=shade, marker=mark, alpha=0.55, s=20)
    axes.scatter([line.mean], [row - 0.15], color=shade, marker=mark, s=64)
    for interval, width in ((line.interval, 2.6), (line.outer, 0.9)):
        if interval is not None:
            axes.plot([interval.low, interval.high], [row - 0.15] * 2, color=shade, linewidth=width)


def _limits(lines: Sequence[Line], rope: float) -> tuple[float, float]:
    """Choose limits that hold all points but those of rows far out, and their intervals unless those are very wide."""
    extents = [max(map(abs, line.points)) for line in lines]
    near = _FAR * max(float(np.median(extents)), rope, 1e-3)
    kept = [line for line, extent in zip(lines, extents, strict=True) if extent <= near] or list(lines)
    reach = 2 * max(max(map(abs, line.points)) for line in kept)
    ends = [end for line in kept for end in (*line.points, *_ends(line)) if abs(end) <= max(reach, near)]
    low, high = min(*ends, -1.3 * rope, 0.0), max(*ends, 1.3 * rope, 0.0)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def _ends(line: Line) -> list[float]:
    return [end for interval in (line.interval, line.outer) if interval for end in (interval.low, interval.high)]


def _point_outside(axes: Axes, row: int, line: Line, low: float, high: float) -> None:
    if low <= line.mean <= high:
        return
    right = line.mean > high
    text = f"{line.mean:+.1f} →" if right else f"← {line.mean:+.1f}"
    axes.annotate(
        text, (high if right else low, row), ha="right" if right else "left", va="center", fontsize=9, color=INK
    )
