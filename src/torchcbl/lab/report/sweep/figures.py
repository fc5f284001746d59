"""The figures of a sweep: what each key does to the score, and what a score costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from torchcbl.lab.report.drawing import INK, canvas, legend, styled, title
from torchcbl.lab.report.looks import colour, marker
from torchcbl.lab.report.sweep.words import scored, signed
from torchcbl.lab.sweep.choice import Choice, Level, levels
from torchcbl.lab.sweep.results import Candidate, Results

_COLUMNS = 4


def draw_effects(results: Results) -> Figure:
    """Draw the scores by value of each key: thin, settings that differ in this key alone; thick, the marginal mean."""
    found, keys = levels(results.complete), results.sweep.keys
    with styled():
        figure, panels = _panels(len(keys), f"Validation {results.sweep.by}{_unit(results)}")
        for axes, key in zip(panels, keys, strict=True):
            _draw_key(axes, key, [level for level in found if level.key == key], results)
        figure.suptitle(_widest(found, keys, results), fontsize=10, x=0.01, ha="left")
    return figure


def draw_cost(results: Results, choice: Choice) -> Figure:
    """Draw the scores by FLOPs of the answer."""
    with styled():
        figure, axes = canvas()
        _scatter(axes, choice.ranking, results.sweep.arm, f"{results.sweep.arm}, one setting")
        _scatter(axes, results.references, results.sweep.plain, results.sweep.plain)
        best, frugal = choice.best, choice.frugal
        _ring(axes, best, "chosen", "solid")
        if frugal is not None and frugal is not best:
            _ring(axes, frugal, "cheapest within one standard error", "dotted")
        axes.set_xlabel("MFLOPs of an answer, per sample")
        axes.set_ylabel(f"Validation {results.sweep.by}{_unit(results)}")
        title(axes, "What a score costs", _cost_finding(results, choice))
        legend(figure, axes)
    return figure


def _panels(count: int, ylabel: str) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many axes that share the y-axis alone."""
    columns = min(_COLUMNS, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(max(4.8, 1.9 * columns + 0.6), 2.4 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for unused in axes[count:]:
        unused.set_axis_off()
    figure.supylabel(ylabel, fontsize=9)
    return figure, list(axes[:count])


def _draw_key(axes: Axes, key: str, found: Sequence[Level], results: Results) -> None:
    arm, place = results.sweep.arm, {level.value: index for index, level in enumerate(found)}
    groups: dict[str, list[tuple[int, float]]] = {}
    for one in results.complete:
        value = dict(one.setting.values)[key]
        groups.setdefault(one.setting.without((key,)).label, []).append((place[value], one.mean))
    for group in groups.values():
        x, y = np.array(sorted(group)).T
        axes.plot(x, y, color=colour(arm), linewidth=0.8, alpha=0.45, marker=".", markersize=4)
    means = [level.mean for level in found]
    axes.plot(range(len(found)), means, color=colour(arm), linewidth=2.2, marker=marker(arm))
    if len(results.references) == 1:
        axes.axhline(results.references[0].mean, color=colour(results.sweep.plain), linewidth=1.2, linestyle="dashed")
    long = sum(len(level.label) for level in found) > 22
    names = [level.label.replace("+", "+\n").replace("_", "_\n") if long else level.label for level in found]
    axes.set_xticks(range(len(found)), names, fontsize=8, rotation=45 if long else 0, ha="right" if long else "center")
    axes.set_xlim(-0.35, len(found) - 0.65)
    axes.tick_params(axis="y", labelsize=8)
    axes.set_title(key, fontsize=9)


def _widest(found: Sequence[Level], keys: Sequence[str], results: Results) -> str:
    """Say which key moves the marginal mean most, and what a setting's own mean is uncertain by."""
    by = results.sweep.by
    ranges = {}
    for key in keys:
        means = [level.mean for level in found if level.key == key and math.isfinite(level.mean)]
        if len(means) > 1:
            ranges[key] = max(means) - min(means)
    if not ranges:
        return "Each key has one value"
    key = max(ranges, key=lambda one: ranges[one])
    moved = f"{key} moves the mean most: {scored(ranges[key], by)}{' points' if by == 'accuracy' else ''}"
    errors = [one.standard_error for one in results.complete if one.standard_error is not None]
    return f"{moved}\nStandard error of one setting (median): {scored(median(errors), by)}" if errors else moved


def _scatter(axes: Axes, candidates: Sequence[Candidate], arm: str, name: str) -> None:
    if not candidates:
        return
    x = [one.cost[0] / 1e6 for one in candidates]
    y = [one.mean for one in candidates]
    errors = [one.std or 0.0 for one in candidates]
    axes.errorbar(
        x,
        y,
        yerr=errors,
        fmt=marker(arm),
        color=colour(arm),
        markersize=5,
        elinewidth=0.8,
        alpha=0.75,
        label=name,
    )


def _ring(axes: Axes, candidate: Candidate, name: str, style: str) -> None:
    axes.scatter(
        [candidate.cost[0] / 1e6],
        [candidate.mean],
        s=160,
        facecolors="none",
        edgecolors=INK,
        linestyles=style,
        linewidths=1.4,
        label=name,
        zorder=4,
    )


def _cost_finding(results: Results, choice: Choice) -> str:
    reference = results.reference(choice.best)
    if reference is None:
        return ""
    ratio = choice.best.cost[0] / reference.cost[0]
    difference = signed(choice.best.mean - reference.mean, results.sweep.by)
    return f"Chosen: {difference} against {reference.arm} at {ratio:.2f} x its FLOPs"


def _unit(results: Results) -> str:
    return " (%)" if results.sweep.by == "accuracy" else ""
