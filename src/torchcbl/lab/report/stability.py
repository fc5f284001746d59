"""The stability page of one run: what its loop does when it is run on, in words, tables and figures."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from torchcbl.files import write_atomically
from torchcbl.lab.codec import as_json
from torchcbl.lab.report.drawing import INK, PALETTE, canvas, legend, log_scale, styled, title
from torchcbl.lab.report.shell import captioned, paragraphs, write_page
from torchcbl.lab.report.tables import NONE, Table
from torchcbl.lab.stability import TOLERANCE, Stability
from torchcbl.refinement import Status

_MOST_LINES = 60
_BLUE, _RED, _GREEN = PALETTE[:3]


def write_stability(found: Stability, folder: Path) -> Path:
    """Write `stability.html` and `stability.json` into a run's folder and return the page's path.

    Raises:
        OSError: The folder cannot be written.
    """
    page, text = folder / "stability.html", render(found)
    write_atomically(folder / "stability.json", as_json(found.as_dict()))
    write_atomically(page, text)
    return page


def verdict(found: Stability) -> tuple[str, ...]:
    """Say in sentences what came out."""
    report, n = found.report, found.samples
    settles = int((report.asymptotic_rate < 1).sum())
    rates = report.asymptotic_rate[report.asymptotic_rate < 1]
    slowest = (
        f"; for the slowest of them, each step leaves {float(rates.max()):.3g} of the distance" if len(rates) else ""
    )
    found_for = int((report.status == Status.converged).sum())
    best = int(np.argmax(found.outputs_accuracy))
    sentences = [
        f"A fixed point was found for {found_for} of {n} samples, and the loop returns to it for {settles}{slowest}.",
        _certificate(found),
        f"To take every relative residual below {TOLERANCE:g}: {found.recommendation}.",
        f"Trained for T = {found.trained_steps}: validation accuracy {_percent(found, 0)} at step 0, "
        f"{_percent(found, found.trained_steps)} at step T, {_percent(found, -1)} after "
        f"{len(found.outputs_accuracy) - 1} steps; the best of all steps is {_percent(found, best)} at step {best}.",
    ]
    return tuple(sentences)


def _certificate(found: Stability) -> str:
    report = found.report
    if report.certified is None:
        return f"Nothing is certified: {report.reason}."
    largest = float(report.certified.max())
    if largest < 1:
        return f"Certified: the loop is a contraction with gamma <= {largest:.3g} for each sample, wherever it starts."
    return f"The certified bound on gamma is {largest:.3g}: not below 1, so Theorem 3.1 promises nothing here."


def _percent(found: Stability, step: int) -> str:
    return f"{100 * found.outputs_accuracy[step]:.1f}%"


def render(found: Stability) -> str:
    """Write the page."""
    with styled():
        figures = {
            "residuals": _residuals(found),
            "norms": _norms(found),
            "eigenvalues": _eigenvalues(found),
            "accuracy": _accuracy(found),
        }
        if found.report.error_bound() is not None and float(found.report.certified_rate.max()) < 1:  # type: ignore[union-attr]
            figures["errors"] = _errors(found)
    parts = {name: captioned(name, figure, _CAPTIONS[name]) for name, figure in figures.items()}
    report = found.report
    kind = "whole Jacobians" if report.exact else "Krylov methods"
    label = (
        f"{found.run}, {found.data}, {found.samples} validation samples; state {report.space} of {report.size} "
        f"numbers, alpha = {report.alpha:g}, {kind}"
    )
    return write_page(
        f"{found.run}: does the loop settle?",
        "stability.html",
        label=escape(label),
        verdicts=paragraphs(verdict(found)),
        numbers=_numbers(found).as_html(),
        solvers=_solvers(found).as_html(),
        **{"errors": "", **parts},
    )


_CAPTIONS = {
    "residuals": "Length of each step, one thin line per sample, their median thick; dashed: at the median rate.",
    "norms": "One point per sample. The radius can be far below the norm: then the first steps may lead away.",
    "eigenvalues": "Eigenvalues of the undamped map at the fixed points; inside the circle, the loop settles.",
    "accuracy": "Accuracy on the validation samples when the loop is run on; dotted: the T it was trained for.",
    "errors": "Distance from the fixed point, and Banach's a-posteriori bound, which never falls below it.",
}


def _numbers(found: Stability) -> Table:
    report = found.report
    rows = [
        ("spectral norm (lower bound on gamma)", report.spectral_norm),
        ("spectral radius", report.spectral_radius),
        ("certified bound on gamma", report.certified),
        ("rate alpha + (1 - alpha) gamma", report.rate),
        ("asymptotic rate", report.asymptotic_rate),
        ("measured rate", report.measured_rate),
    ]
    return Table(
        f"What was measured at the fixed points of {found.samples} samples",
        ("", "Least", "Median", "Largest", "n"),
        tuple((name, *_spread(values)) for name, values in rows),
    )


def _spread(values: Tensor | None) -> tuple[str, str, str, str]:
    kept = values.double()[values.isfinite()] if values is not None else torch.zeros(0)
    if not len(kept):
        return NONE, NONE, NONE, "0"
    low, middle, high = (f"{float(q):.3g}" for q in (kept.min(), kept.median(), kept.max()))
    return low, middle, high, str(len(kept))


def _solvers(found: Stability) -> Table:
    rows = tuple((name, f"{n} of {found.samples}", f"{mean:.1f}") for name, (n, mean) in found.solved.items())
    return Table(
        f"Relative residual below {TOLERANCE:g} within {len(found.outputs_accuracy) - 1} evaluations, by solver; "
        "products with the Jacobian are counted",
        ("Solver", "Settled", "Evaluations per sample"),
        rows,
    )


def _residuals(found: Stability) -> Figure:
    figure, axes = canvas()
    lengths = found.report.lengths.double()
    steps = np.arange(1, len(lengths) + 1)
    positive = torch.where((lengths > 0) & lengths.isfinite(), lengths, torch.nan)
    for line in positive[:, :: -(-positive.shape[1] // _MOST_LINES)].T:  # samples come class by class
        axes.plot(steps, line.numpy(), color=_BLUE, linewidth=0.6, alpha=0.35)
    middle = positive.nanmedian(dim=1).values
    axes.plot(steps, middle.numpy(), color=_BLUE, linewidth=2.2, label="median")
    rate = float(found.report.asymptotic_rate.nanmedian())
    if rate > 0 and bool(middle.isfinite().any()):
        predicted = float(middle[0]) * rate ** np.arange(len(steps))
        shown = int((predicted >= float(middle.nan_to_num(nan=torch.inf).min())).sum())
        axes.plot(steps[:shown], predicted[:shown], color=INK, linestyle="--", label=f"rate {rate:.2g}")
    log_scale(axes)
    axes.set_xlabel("Step")
    axes.set_ylabel("Length of the step, ||G(s) - s||")
    title(axes, "Steps shrink geometrically where the loop settles", f"Median asymptotic rate {rate:.2g}")
    legend(figure, axes)
    return figure


def _norms(found: Stability) -> Figure:
    figure, axes = canvas()
    report = found.report
    norm, radius = report.spectral_norm.double().numpy(), report.spectral_radius.double().numpy()
    axes.scatter(norm, radius, color=_BLUE, s=14, alpha=0.6, label="samples")
    top = float(np.nanmax([1.05, *norm, *radius]))
    axes.plot([0, top], [0, top], color=INK, linewidth=0.8, linestyle=":", label="radius = norm")
    axes.axhline(1.0, color=_RED, linewidth=1, linestyle="--", label="1: above it, the loop leaves")
    axes.set_xlabel("Spectral norm of the Jacobian")
    axes.set_ylabel("Spectral radius")
    below = int((report.spectral_norm < 1).sum())
    title(axes, "Norm and radius at the fixed points", f"Norm below 1 for {below} of {found.samples} samples")
    legend(figure, axes)
    return figure


def _eigenvalues(found: Stability) -> Figure:
    figure, axes = canvas()
    values = found.report.eigenvalues.numpy().ravel()
    values = values[np.isfinite(values)]
    axes.scatter(values.real, values.imag, color=_BLUE, s=6, alpha=0.4)
    angle = np.linspace(0, 2 * np.pi, 200)
    axes.plot(np.cos(angle), np.sin(angle), color=_RED, linewidth=1)
    axes.set_aspect("equal")
    axes.set_xlabel("Real part")
    axes.set_ylabel("Imaginary part")
    outside = int((np.abs(values) >= 1).sum())
    title(axes, "Eigenvalues of dF/ds", f"{outside} of {len(values)} outside the unit circle")
    return figure


def _accuracy(found: Stability) -> Figure:
    figure, axes = canvas()
    accuracy = 100 * np.array(found.outputs_accuracy)
    axes.plot(np.arange(len(accuracy)), accuracy, color=_BLUE, linewidth=2.2)
    axes.axvline(found.trained_steps, color=INK, linestyle=":", label=f"T = {found.trained_steps}")
    axes.set_xlabel("Step")
    axes.set_ylabel("Validation accuracy (%)")
    change = accuracy[-1] - accuracy[found.trained_steps]
    title(axes, "Accuracy when the loop is run on", f"{change:+.1f} points from step T to the last")
    legend(figure, axes)
    return figure


def _errors(found: Stability) -> Figure:
    figure, axes = canvas()
    report = found.report
    bound = report.error_bound()
    assert bound is not None
    steps = np.arange(1, len(bound) + 1)
    for values, colour, name in ((bound, _RED, "a-posteriori bound"), (report.errors, _GREEN, "distance")):
        positive = torch.where((values > 0) & values.isfinite(), values.double(), torch.nan)
        axes.plot(steps, positive.nanmedian(dim=1).values.numpy(), color=colour, linewidth=2.2, label=f"{name}, median")
    log_scale(axes)
    axes.set_xlabel("Step")
    axes.set_ylabel("||s - s*||")
    title(axes, "The certified bound and the distance that it bounds", "")
    legend(figure, axes)
    return figure
