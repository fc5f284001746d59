"""Writing a sweep's page, its tables as text, and the recipe of what was chosen."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from html import escape
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.report.shell import captioned, paragraphs, write_page
from torchcbl.lab.report.sweep import tables
from torchcbl.lab.report.sweep.figures import draw_cost, draw_effects
from torchcbl.lab.report.sweep.words import label, progress, sentences
from torchcbl.lab.sweep.best import write_best
from torchcbl.lab.sweep.choice import Choice, choose, levels
from torchcbl.lab.sweep.results import Results

_EFFECTS = (
    "Mean over the seeds by value of each key. Thin: settings that differ in this key alone; thick: mean over all "
    "settings; dashed: {plain}, without a loop."
)
_COST = "Mean and sample deviation over the seeds of each setting, by its FLOPs."


@dataclass(frozen=True)
class Written:
    """What was written of a sweep.

    Args:
        page: `sweep.html`.
        best: `best.toml`.
        text: Tables and sentences for a terminal.
    """

    page: Path
    best: Path
    text: str


def write_sweep(results: Results, out: Path) -> Written:
    """Choose among a sweep's settings, and write `sweep.html`, `sweep.md` and `best.toml` into its folder.

    Raises:
        ValueError: No setting is complete.
        OSError: The folder cannot be written.
    """
    choice = choose(results)
    said, shown = sentences(results, choice), [tables.settings(results, choice), tables.marginals(results)]
    if results.sweep.refused:
        shown.append(tables.refused(results))
    best, page = write_best(results, choice.best, out), out / "sweep.html"
    write_atomically(out / "sweep.md", "\n".join(table.as_markdown() for table in shown))
    write_atomically(page, render(results, choice, best))
    lines = [shown[0].as_text(), progress(results), *said]
    return Written(page, best, "\n\n".join(lines))


def render(results: Results, choice: Choice, best: Path) -> str:
    """Write the page."""
    unfinished = bool(results.incomplete) or len(results.seeds) < results.sweep.seeds
    return write_page(
        f"{results.sweep.recipe.name}: a sweep of {results.sweep.arm}",
        "sweep.html",
        label=escape(label(results)),
        progress=escape(progress(results)),
        progress_class="partial" if unfinished else "complete",
        verdicts=paragraphs(sentences(results, choice)),
        effects_figure=captioned("effects", draw_effects(results), _EFFECTS.format(plain=results.sweep.plain)),
        levels=tables.marginals(results).as_html(),
        balance=escape(_balance(results)),
        cost_figure=captioned("cost", draw_cost(results, choice), _COST),
        settings=tables.settings(results, choice).as_html(),
        refused=_refused(results),
        best=escape(str(best)),
        recipe=tables.recipe(results).as_html(),
        surroundings=tables.surroundings(results).as_html(),
    )


def _refused(results: Results) -> str:
    if not results.sweep.refused:
        return ""
    return f"<h2>What cannot be had</h2>\n{tables.refused(results).as_html()}"


def _balance(results: Results) -> str:
    """Say whether the marginal means are of like with like."""
    size = math.prod(Counter(level.key for level in levels(results.complete)).values())
    if size == len(results.complete):
        return "Every value meets every combination of the others, so the means of one key compare like with like."
    return (
        f"{len(results.complete)} of the {size} combinations of these values were finished: the values of a key do not "
        "all meet the same values of the others, so their means also differ by the company they keep. Thin lines "
        "compare like with like."
    )
