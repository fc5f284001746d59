"""The report of a study: tables, figures and one HTML page, rebuilt from its recipe and records alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.recipe import read_recipe
from torchcbl.lab.records import Record, read_records
from torchcbl.lab.report import tables
from torchcbl.lab.report.findings import Findings, findings_of

__all__ = ["Report", "build_report", "table"]


@dataclass(frozen=True)
class Report:
    """Where the parts of a report lie.

    Args:
        page: The HTML page; needs no other file.
        table: Results, verdicts and paired differences in Markdown.
        beyond: What the loop adds beyond each control, in Markdown.
        figures: The figures as PNG.
        text: Results and verdicts for a terminal.
    """

    page: Path
    table: Path
    beyond: Path
    figures: tuple[Path, ...]
    text: str


def build_report(folder: Path) -> Report:
    """Rebuild the report of a study from `recipe.toml`, `records/*.json` and, where they were taken, `measures/`.

    Writes `report.html`, `table.md`, `beyond.md` and `figures/*.png` into the folder. The same records give the same
    bytes; a study that is not finished gives a report that names the missing runs.

    Args:
        folder: The study's folder, as `torchcbl compare --out` left it.

    Raises:
        FileNotFoundError: There is no recipe in the folder.
        ValueError: No run has finished, or a record is damaged or was made with another recipe.
        OSError: The folder cannot be written.
    """
    # Imported here so that `table` and the command line need no matplotlib.
    from torchcbl.lab.report.beyond import beyond, draw_beyond, markdown
    from torchcbl.lab.report.drawing import as_png
    from torchcbl.lab.report.figures import draw
    from torchcbl.lab.report.page import render

    findings = Findings(read_recipe(folder / "recipe.toml"), tuple(read_records(folder)), folder)
    figures, controls = draw(findings), beyond(findings)
    drawn = {found.treatment: draw_beyond(found) for found in controls}
    forests = {treatment: figure for treatment, figure in drawn.items() if figure is not None}
    named = {**figures, **{f"beyond-{treatment}": figure for treatment, figure in forests.items()}}
    report = Report(
        page=folder / "report.html",
        table=folder / "table.md",
        beyond=folder / "beyond.md",
        text=as_text(findings),
        figures=tuple(folder / "figures" / f"{name}.png" for name in named),
    )
    for path, figure in zip(report.figures, named.values(), strict=True):
        write_atomically(path, as_png(figure))
    write_atomically(report.table, as_markdown(findings))
    write_atomically(report.beyond, markdown(controls))
    write_atomically(report.page, render(findings, figures, controls, forests))
    return report


def table(records: Sequence[Record]) -> str:
    """Write results and verdicts as plain text for a terminal.

    Args:
        records: Of one study; at least one.

    Raises:
        ValueError: There are no records, two of the same run, or of different recipes.
    """
    return as_text(findings_of(records))


def as_text(findings: Findings) -> str:
    """Write results and verdicts as plain text for a terminal."""
    from torchcbl.lab.report.beyond import beyond, overall

    said = [*findings.verdicts, *map(overall, beyond(findings)), *findings.costs]
    lines = [tables.results(findings).as_text(), "", findings.progress, *said]
    return "\n".join(lines)


def as_markdown(findings: Findings) -> str:
    """Write results, verdicts and costs, what `table.md` holds."""
    parts = [
        tables.results(findings).as_markdown(),
        "".join(f"- {sentence}\n" for sentence in (*findings.verdicts, *findings.costs, findings.progress)),
    ]
    if findings.comparisons:
        parts.append(tables.differences(findings).as_markdown())
    if findings.has_confusion:
        parts.append(tables.balanced(findings).as_markdown())
    return "\n".join(parts)
