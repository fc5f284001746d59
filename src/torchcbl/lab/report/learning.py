"""Learning curves: all arms in one figure, and each arm's every step in a panel of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from torchcbl.lab.records import EpochRecord, Record
from torchcbl.lab.report.drawing import INK, canvas, legend, panels, title, wrapped
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.looks import MANY, colour, featured, marker, place

Curve = NDArray[np.float64]
What = Literal["loss", "accuracy"]
_UNITS = {"loss": ("nats", "lower", ".3f", ""), "accuracy": ("%", "higher", ".2f", "%")}


def draw_learning(findings: Findings, what: What) -> Figure:
    """Draw validation loss or accuracy of the answer y_T by epoch: Figures 2 and 3 of the paper.

    Of many arms, the baseline and the loops are in colour with all their runs, the means of the others grey.
    """
    figure, axes = canvas()
    shown, last = featured(findings.arms), {}
    grey = [arm for arm in findings.arms if arm not in shown]
    for index, arm in enumerate(grey):
        mean = np.array([of_step[-1] for of_step in curves(findings.runs(arm), what).mean(axis=0)])
        label = f"{len(grey)} controls, means" if not index else None
        axes.plot(_epochs(mean), mean, color=INK, alpha=0.35, linewidth=0.9, label=label)
    for arm in shown:
        of_runs = curves(findings.runs(arm), what)[:, :, -1]
        last[arm] = plot_runs(axes, arm, _epochs(of_runs[0]), of_runs)
    axes.set_xlabel("Epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    unit, better, form, sign = _UNITS[what]
    axes.set_ylabel(f"Validation {what} ({unit})")
    title(axes, f"Validation {what} by epoch: {better} is better", _ending(last, form, sign))
    legend(figure, axes)
    return figure


def arms_in_panels(findings: Findings) -> tuple[str, ...]:
    """Choose the arms that `draw_convergence` shows: those with steps, or all of many."""
    if len(findings.arms) > MANY:
        return findings.arms
    return tuple(arm for arm in findings.arms if curves(findings.runs(arm), "loss").shape[2] > 1)


def draw_convergence(findings: Findings, what: What) -> Figure:
    """Draw validation loss or accuracy by epoch, a panel for each arm and in it a line for each step tau.

    Lines are means over the seeds, bands go from the lowest run to the highest; the baseline's mean is dashed.
    """
    unit, better, *_ = _UNITS[what]
    arms = arms_in_panels(findings)
    figure, all_axes = panels(len(arms), "Epoch", f"Validation {what} ({unit})")
    baseline = findings.runs(findings.baseline)
    for axes, arm in zip(all_axes, arms, strict=True):
        of_steps = np.moveaxis(curves(findings.runs(arm), what), 2, 0)  # (T + 1, S, epochs)
        for step, of_runs in enumerate(of_steps):
            _plot_band(axes, of_runs, _shade(step, len(of_steps)), f"τ = {step}")
        if baseline and arm != findings.baseline:
            mean = curves(baseline, what)[:, :, -1].mean(axis=0)
            axes.plot(_epochs(mean), mean, color=INK, linewidth=1.0, linestyle="--", label=findings.baseline)
        axes.set_title(f"{arm}, n = {len(of_steps[0])}", fontsize=8, loc="left")
    if what == "accuracy":
        _look_at_the_end(all_axes[0], findings)
    figure.suptitle(f"Validation {what} by epoch and step: {better} is better", fontsize=10, x=0.01, ha="left")
    most = max(all_axes, key=lambda axes: len(axes.get_legend_handles_labels()[0]))
    legend(figure, most)
    return figure


def curves(runs: Sequence[Record], what: What) -> Curve:
    """Collect what was measured on the validation data of some runs of one arm: (S, epochs, T + 1), in nats or %."""
    read: Callable[[EpochRecord], tuple[float, ...]] = _read_loss if what == "loss" else _read_accuracy
    length = min(len(run.epochs) for run in runs)
    steps = min(len(read(run.epochs[0])) for run in runs)
    found: Curve = np.array([[read(epoch)[-steps:] for epoch in run.epochs[:length]] for run in runs], dtype=float)
    return found


def _read_loss(epoch: EpochRecord) -> tuple[float, ...]:
    return epoch.validation_loss


def _read_accuracy(epoch: EpochRecord) -> tuple[float, ...]:
    return tuple(100 * value for value in epoch.validation_accuracy)


def plot_runs(axes: Axes, arm: str, x: Curve, of_runs: Curve) -> float:
    """Draw all runs thin, their mean thick (it breaks off where a run is not finite); return its end."""
    mean = of_runs.mean(axis=0)
    for curve in of_runs if len(of_runs) > 1 else ():
        axes.plot(x, curve, color=colour(arm), linewidth=0.8, alpha=0.45, marker="." if x.size == 1 else "")
    gap = max(1, x.size // 6)  # markers of different arms stand apart, so that no curve hides another's
    axes.plot(
        x,
        mean,
        color=colour(arm),
        linewidth=2.2,
        marker=marker(arm),
        markersize=5,
        markevery=(place(arm) % gap, gap),
        label=f"{arm}, n = {len(of_runs)}",
    )
    return float(mean[-1])


def _plot_band(axes: Axes, of_runs: Curve, shade: str, label: str) -> None:
    x = _epochs(of_runs[0])
    axes.fill_between(x, of_runs.min(axis=0), of_runs.max(axis=0), color=shade, alpha=0.25, linewidth=0)
    axes.plot(x, of_runs.mean(axis=0), color=shade, linewidth=1.5, marker="." if x.size == 1 else "", label=label)


def _shade(step: int, steps: int) -> str:
    """Choose a colour along a scale that also reads in grey: the last step is the darkest."""
    position = 0.8 - 0.75 * step / (steps - 1) if steps > 1 else 0.05
    return mpl.colors.to_hex(mpl.colormaps["viridis"](position))


def _look_at_the_end(axes: Axes, findings: Findings) -> None:
    """Cut off the first epochs' low accuracies, which flatten what the arms differ in."""
    halves = [curves(findings.runs(arm), "accuracy") for arm in findings.arms]
    ends = np.concatenate([half[:, half.shape[1] // 4 :].ravel() for half in halves])
    ends = ends[np.isfinite(ends)]
    if ends.size and np.ptp(ends) > 0:
        margin = 0.06 * float(np.ptp(ends))
        axes.set_ylim(float(ends.min()) - margin, float(ends.max()) + margin)


def _epochs(curve: Curve) -> Curve:
    return np.arange(1.0, 1 + len(curve))


def _ending(last: dict[str, float], form: str, sign: str) -> str:
    values = {arm: f"{value:{form}}{sign}" if np.isfinite(value) else "not finite" for arm, value in last.items()}
    return wrapped("Last epoch: ", [f"{arm} {value}" for arm, value in values.items()])
