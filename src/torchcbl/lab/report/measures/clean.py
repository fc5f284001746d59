"""The section of `clean`: calibration, cost, early exit, and what the loop changed, in numbers and in pictures."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from torchcbl.lab.data import Dataset, ImageDataset
from torchcbl.lab.measures.calibration import NUM_BINS
from torchcbl.lab.measures.clean import Change, Clean
from torchcbl.lab.measures.found import Measures, Row
from torchcbl.lab.report.drawing import INK, canvas, legend, title
from torchcbl.lab.report.looks import colour, featured, marker
from torchcbl.lab.report.measures.section import Section, cell, table_of
from torchcbl.lab.report.roles import is_oracle
from torchcbl.lab.report.tables import NONE, Table

_MOST_PICTURES = 24

_NOTE = (
    "Accuracy is tested in the study's report, within families of comparisons, and not a second time here. ECE takes "
    "15 bins of equal width (Guo et al. 2017). Confidence lets a sample go when max p reaches the level, agreement "
    "when so many steps gave the answer of the one before. Asked from step 1 on, that is the library's halting=; asked "
    "from step 0 on, the first answer may be the last. Seconds are medians on one machine, and only informative."
)


def section(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    rows = found.rows(found.of("clean", Clean), lambda run: len(run.scores.accuracy))
    if not rows:
        return None
    trend = tuple(_trend(rows))
    return Section(
        "clean",
        "The test part as it is: calibration, cost, early exit",
        trend,
        (_scores(rows), *_changes(rows), _cost(rows)),
        (
            (
                "reliability",
                _reliability(rows),
                "Accuracy by confidence of y_T, all runs of an arm together.",
            ),
            ("cost", _curve(rows), "Accuracy by mean cost when samples stop early; large marks: no early exit."),
        ),
        _NOTE,
        told=trend,
        folded=tuple(_exits(rows)),
    )


def _scores(rows: Sequence[Row[Clean]]) -> Table:
    n = rows[0].runs[0].about.n
    return table_of(
        f"Accuracy (%), negative log-likelihood (nats), ECE (points) and Brier score on {n:,} test samples",
        rows,
        {
            "Accuracy": lambda run, step: 100 * run.scores.accuracy[step],
            "NLL": (lambda run, step: run.scores.loss[step], ".4f"),
            "ECE": lambda run, step: 100 * run.scores.ece[step],
            "Brier": (lambda run, step: run.brier[step], ".4f"),
        },
    )


def _trend(rows: Sequence[Row[Clean]]) -> list[str]:
    """Say what the loop does to calibration from its first answer to its last."""
    said = []
    for row in _loops(rows):
        first, last = (np.mean([100 * run.scores.ece[step] for run in row.runs]) for step in (0, row.step))
        said.append(f"ECE of {row.arm}: {first:.2f} points at step 0, {last:.2f} at step {row.step}.")
    return said


def _loops(rows: Sequence[Row[Clean]]) -> list[Row[Clean]]:
    """The answers of featured arms that have steps and are told nothing."""
    shown = featured(list(dict.fromkeys(row.arm for row in rows)))
    return [row for row in rows if row.last and row.step > 0 and row.arm in shown and not is_oracle(row.arm)]


def _exits(rows: Sequence[Row[Clean]]) -> list[Table]:
    lines = []
    for row in _loops(rows):
        for place, rule in enumerate(row.runs[0].exits):
            chosen = {run.about.seed: run.exits[place] for run in row.runs}
            asked = f"from step {rule.first}"
            name = f"{row.arm}, {rule.rule} {rule.level:g} {asked}"
            accuracy = cell({seed: 100 * one.accuracy for seed, one in chosen.items()})
            steps = cell({seed: one.steps for seed, one in chosen.items()})
            flops = cell({seed: one.flops / 1e6 for seed, one in chosen.items()})
            lines.append((name, accuracy, steps, flops, str(len(chosen))))
    header = ("Rule", "Accuracy (%)", "Steps", "MFLOPs", "n")
    return [Table("Early exit: mean and 95% interval over the seeds", header, tuple(lines))] if lines else []


def _changes(rows: Sequence[Row[Clean]]) -> list[Table]:
    lines = []
    for row in rows:
        if row.last and row.step > 0:
            better = {run.about.seed: float(sum(one.better for one in run.changes)) for run in row.runs}
            worse = {run.about.seed: float(sum(not one.better for one in run.changes)) for run in row.runs}
            net = {seed: better[seed] - worse[seed] for seed in better}
            lines.append((row.arm, cell(better, ".1f"), cell(worse, ".1f"), cell(net, "+.1f"), str(len(row.runs))))
    header = ("Model", "Put right", "Put wrong", "Net", "n")
    what = "Test samples that the loop changed from step 0 to step T: mean and 95% interval over the seeds"
    return [Table(what, header, tuple(lines))] if lines else []


def _cost(rows: Sequence[Row[Clean]]) -> Table:
    lines = []
    for row in rows:
        first = row.runs[0]
        flops = (first.flops_first + row.step * first.flops_step) / 1e6
        times = [_seconds(row, place) for place in range(len(first.timings))]
        lines.append((row.label, f"{flops:.2f}", *times))
    sizes = [timing.batch for timing in rows[0].runs[0].timings]
    machine = rows[0].runs[0].about.machine
    where = f"{machine.get('processor', NONE)}, {machine.get('threads', NONE)} threads, {machine.get('device', NONE)}"
    header = ("Model", "MFLOPs", *(f"Milliseconds, batch of {size}" for size in sizes))
    return Table(
        f"Cost per sample when the loop stops after step τ; median over the runs ({where})", header, tuple(lines)
    )


def _seconds(row: Row[Clean], place: int) -> str:
    values = [run.timings[place].seconds[row.step] for run in row.runs if row.step < len(run.timings[place].seconds)]
    return f"{1e3 * float(np.median(values)):.3f}" if values else NONE


def _reliability(rows: Sequence[Row[Clean]]) -> Figure:
    figure, axes = canvas()
    answers = [row for row in rows if row.last]
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, linestyle="--", label="calibrated")
    errors = []
    for row in answers:
        if row.arm in featured([one.arm for one in answers]):
            bins = [run.bins[row.step] for run in row.runs]
            counts = np.array([one.count for one in bins], dtype=float)
            weights = counts / np.maximum(counts.sum(0), 1)
            confidence = np.nansum(weights * np.array([one.confidence for one in bins]), axis=0)
            accuracy = np.nansum(weights * np.array([one.accuracy for one in bins]), axis=0)
            full = counts.sum(0) > 0
            axes.plot(confidence[full], accuracy[full], color=colour(row.arm), marker=marker(row.arm), label=row.arm)
            errors.append(f"{row.arm} {100 * np.mean([run.scores.ece[row.step] for run in row.runs]):.2f}")
    axes.set_xlabel(f"Confidence, {NUM_BINS} bins")
    axes.set_ylabel("Accuracy")
    title(axes, "Below the line: too sure of itself", f"ECE (points): {', '.join(errors)}"[:70])
    legend(figure, axes)
    return figure


def _curve(rows: Sequence[Row[Clean]]) -> Figure:
    figure, axes = canvas()
    arms = list(dict.fromkeys(row.arm for row in rows))
    for arm in featured([one for one in arms if not is_oracle(one)]):
        steps = [row for row in rows if row.arm == arm]
        run = steps[0].runs[0]
        cost = [(run.flops_first + row.step * run.flops_step) / 1e6 for row in steps]
        height = [float(np.mean([100 * one.scores.accuracy[row.step] for one in row.runs])) for row in steps]
        axes.plot(cost, height, color=colour(arm), marker=marker(arm), markersize=8, linestyle=":", label=arm)
        places = [p for p, one in enumerate(run.exits) if one.rule == "confidence" and one.first == 0]
        if len(steps) > 1 and places:
            exits = [[one.exits[place] for one in steps[0].runs] for place in places]
            x = [float(np.mean([one.flops for one in of_rule])) / 1e6 for of_rule in exits]
            y = [float(np.mean([100 * one.accuracy for one in of_rule])) for of_rule in exits]
            axes.plot(x, y, color=colour(arm), linewidth=1.5, marker=".", label=f"{arm}, early exit")
    axes.set_xlabel("MFLOPs per sample")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "What accuracy costs", "Early exit by confidence, asked from step 0 on")
    legend(figure, axes)
    return figure


def pictures(found: Measures, dataset: Dataset | None) -> str:
    """Show what the loops changed, for better and for worse, as HTML; those first that most runs agree on."""
    rows = found.rows(found.of("clean", Clean), lambda run: len(run.scores.accuracy))
    parts = []
    for row in _loops(rows):
        changes = [change for run in row.runs for change in run.changes]
        if changes and isinstance(dataset, ImageDataset):
            for better, heading in ((True, "put right"), (False, "put wrong")):
                parts.append(_grid(row, [one for one in changes if one.better is better], heading, dataset))
    if not parts:
        return ""
    return f"<h2>What the loop changed</h2>\n{''.join(parts)}"


def _grid(row: Row[Clean], changes: Sequence[Change], heading: str, data: ImageDataset) -> str:
    count = Counter(change.index for change in changes)
    chosen = sorted(count, key=lambda index: (-count[index], index))[:_MOST_PICTURES]
    classes = data.form.classes
    shown = []
    for index in chosen:
        answers = Counter((one.label, one.first, one.last) for one in changes if one.index == index)
        label, first, last = answers.most_common(1)[0][0]
        text = f"{classes[label]}: {classes[first]} → {classes[last]}"
        often = f"<br>{count[index]} of {len(row.runs)} runs" if len(row.runs) > 1 else ""
        picture = _data_uri(data.test.images[index].permute(1, 2, 0).numpy())
        caption = f"<figcaption>{escape(text)}{often}</figcaption>"
        alt = escape(f"test image {index}, a {classes[label]}", quote=True)
        shown.append(f'<figure><img src="{picture}" alt="{alt}">{caption}</figure>')
    total = f"{len(count)} test images in all runs together" + (
        "" if len(count) <= len(chosen) else f", {len(chosen)} shown"
    )
    head = f"<h3>{escape(row.arm)}: {heading} ({total})</h3>"
    legend_text = "<p class='note'>True class: answer at step 0 → answer at step T.</p>"
    return f"{head}\n{legend_text}\n<div class='pictures'>{''.join(shown)}</div>\n"


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
