"""What the sections of the page have in common: tables by arm and step, and comparisons with the baseline."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from torchcbl.lab.measures.found import Found, Measures, Row
from torchcbl.lab.report.drawing import INK
from torchcbl.lab.report.families import baseline_of, compare_arms
from torchcbl.lab.report.looks import MANY, colour, featured, marker
from torchcbl.lab.report.roles import is_loop, told
from torchcbl.lab.report.shell import captioned, paragraphs
from torchcbl.lab.report.tables import NONE, Table
from torchcbl.lab.report.verdict import verdict
from torchcbl.lab.statistics import t_interval

Read = Callable[[Found, int], float]
"""Reads one number of one step of a result."""
_FOLDED = "<details><summary>{}</summary>\n{}\n</details>"
_NARROW = 5.0  # inches


@dataclass(frozen=True)
class Section:
    """A kind's part of the page.

    Args:
        kind: The kind's name.
        heading: Its heading.
        sentences: What came out.
        tables: The first also stands in what is printed.
        figures: Each with its name and its caption.
        note: What a reader must know.
        told: Of the sentences, those that also stand at the page's head.
        folded: Long tables, which fold away.
    """

    kind: str
    heading: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[tuple[str, Figure, str], ...]
    note: str
    told: tuple[str, ...] = ()
    folded: tuple[Table, ...] = ()

    def as_html(self) -> str:
        """Write it."""
        return "\n".join(
            [
                f"<h2>{escape(self.heading)}</h2>",
                self._sentences(),
                *self._figures(),
                *(table.as_html() for table in self.tables),
                *(_FOLDED.format(escape(table.title), table.as_html()) for table in self.folded),
                f'<p class="note">{escape(self.note)}</p>',
            ]
        )

    def _sentences(self) -> str:
        if len(self.sentences) <= MANY:
            return paragraphs(self.sentences)
        rest = [sentence for sentence in self.sentences if sentence not in self.told]
        return paragraphs(self.told) + _FOLDED.format("Every arm against the baseline", paragraphs(rest))

    def _figures(self) -> list[str]:
        """Write the figures, narrow ones beside each other."""
        narrow, wide = "", ""
        for name, figure, caption in self.figures:
            text = captioned(f"{self.kind}-{name}", figure, caption)
            if figure.get_figwidth() <= _NARROW:
                narrow += text
            else:
                wide += text
        return [f'<div class="pair">{narrow}</div>', wide]


def cell(values: Mapping[int, float], form: str = ".2f") -> str:
    """Write the mean over the seeds and its 95% interval.

    Example:
        >>> cell({0: 1.0, 1: 2.0, 2: 3.0}), cell({0: 1.0}), cell({0: math.nan})
        ('2.00 (-0.48 to 4.48)', '1.00', '-')
    """
    numbers = list(values.values())
    if not numbers or not all(map(math.isfinite, numbers)):
        return NONE
    interval = t_interval(numbers)
    around = f" ({interval.low:{form}} to {interval.high:{form}})" if interval else ""
    return f"{float(np.mean(numbers)):{form}}{around}"


def table_of(
    title: str, rows: Sequence[Row[Found]], columns: Mapping[str, tuple[Read[Found], str] | Read[Found]]
) -> Table:
    """Build a table with a row for every arm and step.

    Args:
        title: Its title, with units.
        rows: The rows.
        columns: What to read by the column's name, with the number's format; ".2f" where none is given.
    """
    lines = []
    for row in rows:
        cells = []
        for entry in columns.values():
            read, form = entry if isinstance(entry, tuple) else (entry, ".2f")
            cells.append(cell(row.values(read), form))
        lines.append((row.label, *cells, str(len(row.runs))))
    return Table(f"{title}: mean and 95% interval over the seeds", ("Model", *columns, "n"), tuple(lines))


def verdicts(found: Measures, rows: Sequence[Row[Found]], what: str, read: Read[Found]) -> tuple[str, ...]:
    """Say of each arm's answer how it compares with the baseline's.

    Args:
        found: The study's measures.
        rows: Of all arms.
        what: What is compared, for the beginning of the sentence.
        read: Reads it, in points; more is better.
    """
    scores = {row.arm: row.values(read) for row in rows if row.last}
    compared = compare_arms(scores, baseline_of(found.recipe.arms), found.recipe.arms)
    return tuple(f"{what}: {verdict(one, found.recipe.seeds)}{told(one.treatment)}" for one in compared)


def of_loops(found: Measures, sentences: Sequence[str]) -> tuple[str, ...]:
    """Choose the sentences about loops, which stand at the page's head."""
    loops = [arm for arm in found.recipe.arms if is_loop(arm)]
    return tuple(one for one in sentences if any(f" {arm} " in f" {one}" for arm in loops))


def curves(
    axes: Axes, rows: Sequence[Row[Found]], x: Sequence[float], read: Callable[[Found, int, int], float]
) -> None:
    """Draw a curve of each arm's answer: featured arms thick with every run thin, the others' means grey.

    Args:
        axes: Where to.
        rows: Of all arms.
        x: Places.
        read: Reads the height at one place, by result, step and the place's number.
    """
    answers = [row for row in rows if row.last]
    shown = featured([row.arm for row in answers])
    others = [row for row in answers if row.arm not in shown]
    for number, row in enumerate(others):
        label = f"{len(others)} other arms, means" if not number else None
        axes.plot(x, _heights(row, x, read).mean(0), color=INK, alpha=0.3, linewidth=0.9, label=label)
    for row in answers:
        if row.arm in shown:
            heights = _heights(row, x, read)
            for one in heights if len(heights) > 1 else ():
                axes.plot(x, one, color=colour(row.arm), linewidth=0.8, alpha=0.4)
            axes.plot(
                x,
                heights.mean(0),
                color=colour(row.arm),
                linewidth=2.0,
                marker=marker(row.arm),
                markersize=5,
                label=f"{row.arm}, n = {len(heights)}",
            )


def _heights(row: Row[Found], x: Sequence[float], read: Callable[[Found, int, int], float]) -> np.ndarray:
    return np.array([[read(run, row.step, place) for place in range(len(x))] for run in row.runs])
