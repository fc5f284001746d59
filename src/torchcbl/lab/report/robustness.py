"""The robustness page of a study on sound: accuracy by signal-to-noise ratio, arm and step."""

from __future__ import annotations

from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from torchcbl.files import write_atomically
from torchcbl.lab.records import run_name
from torchcbl.lab.report.drawing import canvas, legend, styled, title
from torchcbl.lab.report.families import baseline_of
from torchcbl.lab.report.looks import colour, marker
from torchcbl.lab.report.progress import lacking, lead
from torchcbl.lab.report.roles import TOLD, is_oracle
from torchcbl.lab.report.shell import captioned, paragraphs, write_page
from torchcbl.lab.report.tables import NONE, Table, spread
from torchcbl.lab.robustness import NoisyRun, Robustness
from torchcbl.lab.sources import SOURCES
from torchcbl.lab.statistics import SIGNIFICANCE, Comparison, compare, summarise, t_interval


def write_robustness(found: Robustness, folder: Path) -> Path:
    """Write `robustness.html` and `robustness.md` into the study's folder and return the page's path.

    Raises:
        OSError: The folder cannot be written.
    """
    page = folder / "robustness.html"
    start = [f"{missing}\n"] if (missing := _partial(found)) else []
    text = "\n".join([*start, *(table.as_markdown() for table in tables(found))])
    write_atomically(folder / "robustness.md", text)
    write_atomically(page, render(found))
    return page


def summary(found: Robustness) -> str:
    """Write tables and sentences as plain text."""
    return "\n\n".join([*(table.as_text() for table in tables(found)), *sentences(found)])


def tables(found: Robustness) -> list[Table]:
    """Accuracy by arm, step and ratio; and differences to the baseline."""
    ratios, note = _ratios(found), SOURCES[found.recipe.data].note
    about = f"{found.recipe.name}; {note}" if note else found.recipe.name
    what = f"Test accuracy (%) on {found.runs[0].n:,} clips by signal-to-noise ratio; {about}"
    rows = [
        (f"{arm}, τ = {step}", *(_cell(found, arm, r, step) for r in range(len(ratios))), str(len(found.of(arm))))
        for arm in found.arms
        for step in range(_steps(found, arm))
    ]
    built = [Table(f"{what}: mean and 95% interval over the seeds", ("Model", *_ratios(found), "n"), tuple(rows))]
    baseline = _baseline(found)
    compared = [arm for arm in found.arms if arm != baseline]
    if baseline in found.arms and compared:
        differences = tuple(
            (f"{arm} minus {baseline}", *(_difference(_compared(found, arm, r)) for r in range(len(_ratios(found)))))
            for arm in compared
        )
        built.append(
            Table("Paired differences of the answers y_T (points), 95% interval", ("", *_ratios(found)), differences)
        )
    return built


def sentences(found: Robustness) -> list[str]:
    """Say where a difference is shown and where none is."""
    baseline = _baseline(found)
    if baseline not in found.arms:
        said = [f"No finished run of the arm {baseline}: nothing to compare with."]
    else:
        said = [_sentence(found, arm) for arm in found.arms if arm != baseline]
    return [*said, missing] if (missing := _partial(found)) else said


def _partial(found: Robustness) -> str:
    return lacking(found.recipe, {run_name(run.arm, run.seed) for run in found.runs})


def _sentence(found: Robustness, arm: str) -> str:
    ratios, told, baseline = _ratios(found), is_oracle(arm), _baseline(found)
    results = [(ratio, _compared(found, arm, index)) for index, ratio in enumerate(ratios)]
    pairs = results[0][1]
    if all(one.t_test is None for _, one in results):
        return f"{arm} against {baseline}: no test possible, which needs two pairs of runs that differ."
    rivals = {name for name in (*found.recipe.arms, *found.arms) if name != baseline and not is_oracle(name)}
    arms = 1 if told else len(rivals)
    over = f"{len(ratios)} ratios" + (f" and {arms} arms" if arms > 1 else "")
    left_out = f", left out: seed {', '.join(map(str, pairs.unpaired))}" if pairs.unpaired else ""
    level = f"at 0.05 over {over} (Bonferroni), {pairs.n} pairs{left_out}{f'; {TOLD}' if told else ''}"
    shown = [
        f"{one.mean:+.2f} points ({ratio})"
        for ratio, one in results
        if one.t_test is not None and one.t_test.p < SIGNIFICANCE / (len(ratios) * arms)
    ]
    if shown:
        return f"{arm} differs from {baseline} by {', '.join(shown)}: {level}{lead(pairs.n, found.recipe.seeds)}."
    return f"{arm} against {baseline}: no difference shown at any ratio, {level}."


def render(found: Robustness) -> str:
    """Write the page."""
    with styled():
        figure = draw_noise(found)
    caption = "Accuracy of the answer y_T by signal-to-noise ratio; thin: single runs, thick: mean."
    note = SOURCES[found.recipe.data].note
    return write_page(
        f"{found.recipe.name}: in background noise",
        "robustness.html",
        label=escape(f"{len(found.runs)} runs, {found.runs[0].n:,} test clips{f'; {note}' if note else ''}"),
        verdicts=paragraphs(sentences(found)),
        figure=captioned("noise", figure, caption),
        tables="\n".join(table.as_html() for table in tables(found)),
    )


def _ratios(found: Robustness) -> tuple[str, ...]:
    return found.runs[0].ratios


def _steps(found: Robustness, arm: str) -> int:
    return min(len(run.accuracy[0]) for run in found.of(arm))


def _values(runs: list[NoisyRun], ratio: int, step: int) -> list[float]:
    return [100 * run.accuracy[ratio][step] for run in runs]


def _cell(found: Robustness, arm: str, ratio: int, step: int) -> str:
    values = _values(found.of(arm), ratio, step)
    interval = t_interval(values)
    return spread(summarise(values)).split(" ")[0] + (f" ({interval})" if interval else "")


def _baseline(found: Robustness) -> str:
    return baseline_of((*found.recipe.arms, *found.arms))


def _compared(found: Robustness, arm: str, ratio: int) -> Comparison:
    names = (arm, _baseline(found))
    scores = [{run.seed: 100 * run.accuracy[ratio][-1] for run in found.of(name)} for name in names]
    return compare(*scores, names=names)


def _difference(comparison: Comparison) -> str:
    if comparison.mean is None:
        return NONE
    interval = f" ({comparison.t_interval})" if comparison.t_interval else ""
    return f"{comparison.mean:+.2f}{interval}"


def draw_noise(found: Robustness) -> Figure:
    """Draw the accuracy of the answers by signal-to-noise ratio."""
    figure, axes = canvas()
    ratios = _ratios(found)
    x = np.arange(len(ratios))
    last = []
    for arm in found.arms:
        curves = np.array([[100 * row[-1] for row in run.accuracy] for run in found.of(arm)])
        for curve in curves if len(curves) > 1 else ():
            axes.plot(x, curve, color=colour(arm), linewidth=0.8, alpha=0.45)
        mean = curves.mean(axis=0)
        axes.plot(x, mean, color=colour(arm), linewidth=2.2, marker=marker(arm), label=f"{arm}, n = {len(curves)}")
        last.append(f"{arm} {mean[-1]:.1f}%")
    axes.set_xticks(x, ratios)
    axes.set_xlabel("Signal-to-noise ratio")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "Accuracy falls with the noise", f"At {ratios[-1]}: {', '.join(last)}")
    legend(figure, axes)
    return figure
