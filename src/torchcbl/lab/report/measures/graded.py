"""The sections of `corruptions` and `occlusion`: accuracy by what is done to the images, and how much of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from torchcbl.lab.measures.disturb.catalogue import CORRUPTIONS
from torchcbl.lab.measures.found import Measures, Row
from torchcbl.lab.measures.graded import Graded
from torchcbl.lab.report.drawing import canvas, legend, panels, title
from torchcbl.lab.report.families import baseline_of
from torchcbl.lab.report.measures.section import Read, Section, cell, curves, of_loops, table_of, verdicts
from torchcbl.lab.report.tables import Table

STANDARD = tuple(name for name, one in CORRUPTIONS.items() if one.standard)

_CORRUPTED = (
    "Made by the published formulas with the parameters for CIFAR-10 (Hendrycks and Dietterich 2019), by the "
    "laboratory's own code: these are not the published files, so compare only what was measured so. Names in "
    "_like depart from the formula. Each image is corrupted alike for every run. mCE is the mean over the "
    "standard corruptions of the error, summed over severities, over that of {baseline} (mean of its seeds), in "
    "per cent: lower is better."
)

_OCCLUDED = (
    "Squares are put at random places; border_patches are cells of other classes' images over the border, inset "
    "is such an image shrunk into a corner, mixed lets one shine through. Each image is treated alike for every "
    "run."
)


def corruptions(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    rows = _rows(found, "corruptions")
    if not rows:
        return None
    first = rows[0].runs[0]
    standard = _present(first, STANDARD)
    errors = baseline_errors(found)
    columns: dict[str, Read[Graded] | tuple[Read[Graded], str]] = {
        "Undisturbed": lambda run, step: 100 * run.clean.accuracy[step],
        f"Mean of {len(first.disturbances)}": lambda run, step: 100 * run.mean("accuracy", step),
        f"Mean of the standard {len(standard)}": lambda run, step: 100 * run.mean("accuracy", step, standard),
        **{group: _of_group(group) for group in dict.fromkeys(one.group for one in first.disturbances)},
        "mCE": lambda run, step: mean_corruption_error(run, step, errors),
        "NLL": (lambda run, step: run.mean("loss", step), ".3f"),
        "ECE": lambda run, step: 100 * run.mean("ece", step),
    }
    skipped = "".join(f" Left out: {name}, which {reason}." for name, reason in first.skipped.items())
    said = verdicts(found, rows, "Accuracy, mean over corruptions", _mean)
    return Section(
        "corruptions",
        "Corrupted images",
        said,
        (
            table_of(
                f"Accuracy (%) on {first.about.n:,} corrupted test images, mean over severities 1 to 5", rows, columns
            ),
            _by_grade(rows),
            _by_name(rows),
        ),
        (("severity", _by_severity(rows), "Accuracy of y_T, mean over all corruptions; 0: undisturbed."),),
        _CORRUPTED.format(baseline=baseline_of(found.recipe.arms)) + skipped,
        told=of_loops(found, said),
    )


def occlusion(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    rows = _rows(found, "occlusion")
    if not rows:
        return None
    first = rows[0].runs[0]
    columns: dict[str, Read[Graded]] = {
        "Undisturbed": lambda run, step: 100 * run.clean.accuracy[step],
        "Mean": lambda run, step: 100 * run.mean("accuracy", step),
        **{one.name: _of_name(one.name) for one in first.disturbances},
    }
    said = verdicts(found, rows, "Accuracy, mean over occluders and clutter", _mean)
    return Section(
        "occlusion",
        "Occluded and cluttered images",
        said,
        (table_of(f"Accuracy (%) on {first.about.n:,} occluded test images, mean over the shares", rows, columns),),
        (
            (
                "shares",
                _by_share(rows),
                "Accuracy of y_T by share of the area, or weight of the other image.",
            ),
        ),
        _OCCLUDED,
        told=of_loops(found, said),
    )


def baseline_errors(found: Measures) -> dict[str, float]:
    """Sum the baseline's error over severities for each corruption, mean over its seeds: what mCE is relative to."""
    runs = found.of("corruptions", Graded).get(baseline_of(found.recipe.arms), [])
    if not runs:
        return {}
    return {one.name: float(np.mean([_error(run, one.name, -1) for run in runs])) for one in runs[0].disturbances}


def mean_corruption_error(run: Graded, step: int, errors: dict[str, float]) -> float:
    """Return the mean corruption error in per cent, over the standard corruptions; NaN without a baseline.

    100 mean_c ( sum_s E[c, s] / sum_s E_baseline[c, s] )
    """
    ratios = [_error(run, name, step) / errors[name] for name in _present(run, STANDARD) if errors.get(name, 0.0) > 0]
    return 100 * float(np.mean(ratios)) if ratios else float("nan")


def _error(run: Graded, name: str, step: int) -> float:
    chosen = next(one for one in run.disturbances if one.name == name)
    return sum(1 - scores.accuracy[step] for scores in chosen.scores)


def _present(run: Graded, names: Sequence[str]) -> tuple[str, ...]:
    present = {one.name for one in run.disturbances}
    return tuple(name for name in names if name in present)


def _rows(found: Measures, kind: str) -> list[Row[Graded]]:
    return found.rows(found.of(kind, Graded), lambda run: len(run.clean.accuracy))


def _mean(run: Graded, step: int) -> float:
    return 100 * run.mean("accuracy", step)


def _of_group(group: str) -> Read[Graded]:
    def read(run: Graded, step: int) -> float:
        return 100 * run.mean("accuracy", step, tuple(one.name for one in run.disturbances if one.group == group))

    return read


def _of_name(name: str) -> Read[Graded]:
    def read(run: Graded, step: int) -> float:
        return 100 * run.mean("accuracy", step, (name,))

    return read


def _at_grade(run: Graded, step: int, place: int) -> float:
    if place == 0:
        return 100 * run.clean.accuracy[step]
    return 100 * float(np.mean([one.scores[place - 1].accuracy[step] for one in run.disturbances]))


def _by_grade(rows: Sequence[Row[Graded]]) -> Table:
    grades = rows[0].runs[0].disturbances[0].grades
    columns = {f"Severity {grade}": _grade_reader(place) for place, grade in enumerate(grades, start=1)}
    return table_of("Accuracy (%) by severity, mean over all corruptions", rows, columns)


def _grade_reader(place: int) -> Read[Graded]:
    return lambda run, step: _at_grade(run, step, place)


def _by_name(rows: Sequence[Row[Graded]]) -> Table:
    answers = [row for row in rows if row.last]
    lines = [
        (one.name, *(cell(row.values(_of_name(one.name))) for row in answers))
        for one in answers[0].runs[0].disturbances
    ]
    what = "Accuracy (%) of y_T by corruption, mean over severities: mean and 95% interval over the seeds"
    return Table(what, ("Corruption", *(row.arm for row in answers)), tuple(lines))


def _by_severity(rows: Sequence[Row[Graded]]) -> Figure:
    figure, axes = canvas()
    grades = rows[0].runs[0].disturbances[0].grades
    curves(axes, rows, (0.0, *map(float, grades)), _at_grade)
    axes.set_xlabel("Severity")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "Accuracy falls with severity", "")
    legend(figure, axes)
    return figure


def _by_share(rows: Sequence[Row[Graded]]) -> Figure:
    disturbances = rows[0].runs[0].disturbances
    figure, all_axes = panels(len(disturbances), "Share (%)", "Test accuracy (%)")
    for number, (axes, one) in enumerate(zip(all_axes, disturbances, strict=True)):

        def read(run: Graded, step: int, place: int, number: int = number) -> float:
            scores = run.clean if place == 0 else run.disturbances[number].scores[place - 1]
            return 100 * scores.accuracy[step]

        curves(axes, rows, (0.0, *map(float, one.grades)), read)
        axes.set_title(one.name, fontsize=8, loc="left")
    legend(figure, all_axes[0])
    return figure
