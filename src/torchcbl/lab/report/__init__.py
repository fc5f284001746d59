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
        figures: The figures as PNG.
    """

    page: Path
    table: Path
    figures: tuple[Path, ...]


def build_report(folder: Path) -> Report:
    """Rebuild the report of a study from `recipe.toml` and `records/*.json` alone.

    Writes `report.html`, `table.md` and `figures/*.png` into the folder. The same records give the same
    bytes; a study that is not finished gives a report that names the missing runs.

    Args:
        folder: The study's folder, as `torchcbl compare --out` left it.

    Raises:
        FileNotFoundError: There is no recipe in the folder.
        ValueError: No run has finished, or a record is damaged or was made with another recipe.
        OSError: The folder cannot be written.
    """
    # Imported here so that `table` and the command line need no matplotlib.
    from torchcbl.lab.report.drawing import as_png
    from torchcbl.lab.report.figures import draw
    from torchcbl.lab.report.page import render

    findings = Findings(read_recipe(folder / "recipe.toml"), tuple(read_records(folder)))
    figures = draw(findings)
    report = Report(
        page=folder / "report.html",
        table=folder / "table.md",
        figures=tuple(folder / "figures" / f"{name}.png" for name in figures),
    )
    for path, figure in zip(report.figures, figures.values(), strict=True):
        write_atomically(path, as_png(figure))
    write_atomically(report.table, _markdown(findings))
    write_atomically(report.page, render(findings, figures))
    return report


def table(records: Sequence[Record]) -> str:
    """Write results and verdicts as plain text for a terminal.

    Args:
        records: Of one study; at least one.

    Raises:
        ValueError: There are no records, two of the same run, or of different recipes.
    """
    findings = findings_of(records)
    lines = [tables.results(findings).as_text(), "", findings.progress, *findings.verdicts, *findings.costs]
    return "\n".join(lines)


def _markdown(findings: Findings) -> str:
    parts = [
        tables.results(findings).as_markdown(),
        "".join(f"- {sentence}\n" for sentence in (*findings.verdicts, *findings.costs, findings.progress)),
    ]
    if findings.comparisons:
        parts.append(tables.differences(findings).as_markdown())
    if findings.has_confusion:
        parts.append(tables.balanced(findings).as_markdown())
    return "\n".join(parts)
