"""The section of `attacks`: accuracy by radius, adaptive against blind, and signs of hidden gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from torchcbl.lab.measures.attack.checks import SEES_THE_LOOP
from torchcbl.lab.measures.attack.suite import FGSM, PGD, SUM
from torchcbl.lab.measures.attacks import Attacks
from torchcbl.lab.measures.found import Measures, Row
from torchcbl.lab.recipe import Recipe
from torchcbl.lab.report.drawing import canvas, legend, title
from torchcbl.lab.report.looks import colour, featured, marker
from torchcbl.lab.report.measures.section import Read, Section, cell, curves, of_loops, table_of, verdicts
from torchcbl.lab.report.roles import is_oracle, trains_first
from torchcbl.lab.report.tables import Table

_NOTE = (
    "L_inf balls on pixels in [0, 1], {n} test images. All attacks but the blind one differentiate through the "
    "whole unrolled loop. The ensemble is APGD on the cross entropy, APGD on the ratio of logits, then the Square "
    "attack, each on what the one before left right, all aimed at y_T. The networks are not trained against "
    "attacks: small differences in how fast they fall are no defence."
)


def section(found: Measures) -> Section | None:
    """Build the section; None where nothing was measured."""
    rows = found.rows(found.of("attacks", Attacks), lambda run: len(run.clean.accuracy))
    if not rows:
        return None
    first = rows[0].runs[0]
    answers = [row for row in rows if not _is_derived(row)]  # a derived arm's answer was not attacked by the ensemble
    mildest = first.parts[0].eps
    what = f"Accuracy under the ensemble at {mildest:g}/255"
    said = verdicts(found, answers, what, lambda run, step: 100 * run.parts[0].square)
    loops = [row for row in rows if row.last and row.step > 0 and _tells(SEES_THE_LOOP, row.arm, found.recipe)]
    suspicions = _suspicions(found.recipe, answers)
    blind = "PGD on y_T by attacks on y_T (solid) and on y_0 alone (dashed)."
    return Section(
        "attacks",
        "Attacks",
        (*said, *suspicions),
        (_by_step(rows), _ensemble(answers), *_transfer(rows), _signs(found.recipe, answers)),
        (
            ("radius", _by_radius(answers), "Accuracy of y_T under the ensemble of attacks, by radius; 0: no attack."),
            *([("blind", _blind(loops), blind)] if loops else []),
        ),
        _NOTE.format(n=first.about.n),
        told=(*of_loops(found, said), *suspicions),
    )


def _is_derived(row: Row[Attacks]) -> bool:
    return row.runs[0].about.arm != row.arm


def _pgd(run: Attacks, aim: str, eps: float, step: int) -> float:
    found = run.find(PGD, aim, eps)
    return 100 * found.accuracy[step] if found else float("nan")


def _radii(rows: Sequence[Row[Attacks]]) -> tuple[float, ...]:
    return tuple(part.eps for part in rows[0].runs[0].parts)


def _by_step(rows: Sequence[Row[Attacks]]) -> Table:
    columns: dict[str, Read[Attacks]] = {"No attack": lambda run, step: 100 * run.clean.accuracy[step]}
    for eps in _radii(rows):
        columns[f"FGSM {eps:g}/255"] = _reader(FGSM, eps)
    for eps in _radii(rows):
        columns[f"PGD {eps:g}/255"] = _reader(PGD, eps)
    return table_of("Accuracy (%) of y_τ under attacks that aim at y_τ itself", rows, columns)


def _reader(name: str, eps: float) -> Read[Attacks]:
    def read(run: Attacks, step: int) -> float:
        found = run.find(name, str(step), eps)
        return 100 * found.accuracy[step] if found else float("nan")

    return read


def _ensemble(rows: Sequence[Row[Attacks]]) -> Table:
    lines = []
    for row in rows:
        if row.last:
            for place, eps in enumerate(_radii(rows)):
                parts = {run.about.seed: run.parts[place] for run in row.runs}
                columns = [
                    {seed: 100 * float(getattr(part, name)) for seed, part in parts.items()}
                    for name in ("clean", "apgd_ce", "apgd_dlr", "square")
                ]
                name = f"{row.arm}{' (told the labels)' if is_oracle(row.arm) else ''}, {eps:g}/255"
                lines.append((name, *(cell(values) for values in columns), str(len(parts))))
    header = ("Model", "No attack", "after APGD, CE", "after APGD, DLR", "after Square", "n")
    what = "Images right (%) at y_T after each part of the ensemble: mean and 95% interval over the seeds"
    return Table(what, header, tuple(lines))


def _transfer(rows: Sequence[Row[Attacks]]) -> list[Table]:
    """By what is attacked, how right each step stays: the blind attack on y_0 beside those that see the loop."""
    lines = []
    loops = [row for row in rows if row.last and row.step > 0]
    depth = max((row.step + 1 for row in loops), default=0)
    for row in loops:
        for eps in _radii(rows)[:2]:
            for aim in (*map(str, range(row.step + 1)), SUM):
                cells = [
                    cell({run.about.seed: _pgd(run, aim, eps, step) for run in row.runs})
                    for step in range(row.step + 1)
                ]
                aimed = "the sum of all losses" if aim == SUM else f"y_{aim}"
                lines.append((f"{row.arm}, {eps:g}/255, on {aimed}", *cells, *["-"] * (depth - len(cells))))
    header = ("PGD", *(f"y_{step} right" for step in range(depth)))
    what = "Accuracy (%) of every step by what PGD aims at: mean and 95% interval over the seeds"
    return [Table(what, header, tuple(lines))] if lines else []


def _signs(recipe: Recipe, rows: Sequence[Row[Attacks]]) -> Table:
    names = list(dict.fromkeys(check.name for row in rows for run in row.runs for check in run.checks))
    lines = []
    for row in rows:
        if row.last:
            cells = []
            for name in names:
                tells = _tells(name, row.arm, recipe)
                held = [check.passed for run in row.runs for check in run.checks if tells and check.name == name]
                cells.append(f"{sum(held)} of {len(held)}" if held else "-")
            lines.append((row.arm, *cells))
    return Table("In how many runs each sign of honest gradients was seen", ("Model", *names), tuple(lines))


def _tells(check: str, arm: str, recipe: Recipe) -> bool:
    """Say whether a check tells anything of an arm: the attack on y_0 has no aim where y_0 was not trained."""
    return check != SEES_THE_LOOP or trains_first(arm, recipe)


def _suspicions(recipe: Recipe, rows: Sequence[Row[Attacks]]) -> list[str]:
    """Say whose robustness must not be believed, and why."""
    said = []
    for row in rows:
        if not row.last:
            continue
        told = ", which is told the labels" if is_oracle(row.arm) else ""
        found = ((run.about.run, check) for run in row.runs for check in run.suspicious)
        failed = [(run, check) for run, check in found if _tells(check.name, row.arm, recipe)]
        for name in dict.fromkeys(check.name for _, check in failed):
            runs = [(run, check.detail) for run, check in failed if check.name == name]
            said.append(
                f"{row.arm}{told}: {len(runs)} of {len(row.runs)} runs show a sign of hidden gradients, so that their "
                f"robustness is not to be believed: not '{name}' ({runs[0][0]}: {runs[0][1]})."
            )
        if row.runs[0].depends_on_batch:
            said.append(f"{row.arm}: answers depend on the rest of the batch, so attacks on it are approximate.")
    return said


def _by_radius(rows: Sequence[Row[Attacks]]) -> Figure:
    figure, axes = canvas()

    def read(run: Attacks, step: int, place: int) -> float:
        return 100 * (run.clean.accuracy[step] if place == 0 else run.parts[place - 1].square)

    curves(axes, rows, (0.0, *_radii(rows)), read)
    axes.set_xlabel("Radius (1/255)")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "Accuracy under the ensemble of attacks", "")
    legend(figure, axes)
    return figure


def _blind(loops: Sequence[Row[Attacks]]) -> Figure:
    figure, axes = canvas()
    x = _radii(loops)
    for row in loops:
        if row.arm in featured([one.arm for one in loops]):
            for aim, style in ((str(row.step), "-"), ("0", "--")):
                heights = [float(np.mean([_pgd(run, aim, eps, row.step) for run in row.runs])) for eps in x]
                label = f"{row.arm}, {'sees the loop' if style == '-' else 'blind'}"
                axes.plot(x, heights, color=colour(row.arm), marker=marker(row.arm), linestyle=style, label=label)
    axes.set_xlabel("Radius (1/255)")
    axes.set_ylabel("Test accuracy (%)")
    title(axes, "An attack that sees the loop must be the stronger", "Solid at or below dashed: nothing is hidden")
    legend(figure, axes)
    return figure
