"""The page of measures: what was measured of a study's runs, kind by kind, arm by arm, step by step."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.data import Dataset, load_dataset
from torchcbl.lab.data.identity import check_identity
from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.measures.clean import Clean
from torchcbl.lab.measures.found import Measures
from torchcbl.lab.report.drawing import styled
from torchcbl.lab.report.listing import listed
from torchcbl.lab.report.measures import ambiguity, attacks, clean, graded, noise
from torchcbl.lab.report.measures.section import Section
from torchcbl.lab.report.progress import lacking, planned_runs
from torchcbl.lab.report.shell import paragraphs, write_page
from torchcbl.lab.sources import SOURCES

__all__ = ["partial", "render", "sections", "summary", "write_measures"]

_SECTIONS: dict[str, Callable[[Measures], Section | None]] = {
    "clean": clean.section,
    "corruptions": graded.corruptions,
    "occlusion": graded.occlusion,
    "attacks": attacks.section,
    "ambiguity": ambiguity.section,
    "noise": noise.section,
}


def write_measures(found: Measures, data: Path | None = None) -> Path:
    """Write `measures.html` and `measures.md` into the study's folder, and return the page's path.

    Args:
        found: What was measured.
        data: Folder of the data, for the pictures; None for `TORCHCBL_DATA` or the cache.

    Raises:
        OSError: The folder cannot be written.
    """
    page = found.folder / "measures.html"
    tables = [table for section in sections(found) for table in section.tables]
    start = [f"{missing}\n"] if (missing := partial(found)) else []
    text = "\n".join([*start, *(table.as_markdown() for table in tables)])
    write_atomically(found.folder / "measures.md", text)
    write_atomically(page, render(found, *_dataset(found, data)))
    return page


def sections(found: Measures) -> list[Section]:
    """Build the sections of all kinds that were measured."""
    with styled():
        built = [make(found) for make in _SECTIONS.values()]
    return [section for section in built if section is not None]


def partial(found: Measures) -> str:
    """Say which runs the study lacks, before whose end its tests are not final; nothing where it is complete."""
    return lacking(found.recipe, found.records)


def summary(found: Measures) -> str:
    """Write the first table of each kind, and what came out, as plain text."""
    parts = [partial(found)]
    for section in sections(found):
        parts += [section.tables[0].as_text(), "\n".join(section.sentences)]
    return "\n\n".join(part for part in parts if part)


def render(found: Measures, dataset: Dataset | None = None, without: str = "") -> str:
    """Write the page.

    Args:
        found: What was measured.
        dataset: The data, for the pictures of what the loop changed; None leaves them out.
        without: Why there are no data, as far as the page should say so.

    Returns:
        HTML with figures and pictures inside, without any reference to another file or address.
    """
    built = sections(found)
    note = SOURCES[found.recipe.data].note
    runs = {run for of_kind in found.found.values() for run in of_kind}
    with styled():
        parts = [section.as_html() for section in built]
    if built and found.of("clean", Clean):
        parts.insert(1, clean.pictures(found, dataset))
    return write_page(
        f"{found.recipe.name}: measures of every arm and step",
        "measures.html",
        label=escape(f"{len(runs)} runs measured{f'; {note}' if note else ''}"),
        progress=f'<p class="partial">{escape(missing)}</p>' if (missing := partial(found)) else "",
        verdicts=paragraphs(sentence for section in built for sentence in section.told),
        sections="\n".join(parts),
        missing=paragraphs(_missing(found, without)),
    )


def _missing(found: Measures, without: str) -> list[str]:
    lines = [f"{kind}: {reason}." for kind, reason in found.unfit.items()]
    runs = dict.fromkeys((*planned_runs(found.recipe), *found.records))
    for kind in KIND_NAMES:
        measured = found.found.get(kind, {})
        names = [name for name in runs if name not in measured]
        if kind not in found.unfit and not measured:
            lines.append(f"{kind}: not measured.")
        elif names and measured:
            lines.append(f"{kind}: not measured of {listed(names)}.")
    if without:
        lines.append(f"Pictures of what the loop changed: {without}")
    return lines or ["Nothing: all kinds were measured of all runs."]


def _dataset(found: Measures, data: Path | None) -> tuple[Dataset | None, str]:
    """Load the data for the pictures; without those of the study the page does without, and says why."""
    if SOURCES[found.recipe.data].noun != "image" or not found.found.get("clean"):
        return None, ""
    try:
        dataset = load_dataset(found.recipe, data)
        check_identity(found.folder, dataset)
    except (OSError, ValueError) as error:
        return None, str(error)
    return dataset, ""
