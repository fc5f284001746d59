"""Write the tables of README and docs from the records in results/, or with --check say whether they are up to date.

    python docs/tables.py [--check]

Each pair of comments `<!-- results:NAME -->` and `<!-- /results:NAME -->` holds the tables of `results/NAME`, as
`torchcbl report` makes them from the records alone; `robustness:NAME` those of `torchcbl robustness`; `beyond:NAME`
what the loop adds beyond each control; `verdict:NAME` the sentence that sums it up; `measures:NAME` those of `torchcbl
measure`; `stability:all` what `torchcbl stability` found of all runs that are kept; `arms:all` the table of arms.
`figures:NAME` shows what the loop adds beyond each control and each step to the accuracy, `forest:NAME` the first
alone, and `drawn:NAME` what was measured. The pictures go to docs/figures; a digest of the tables that they were drawn
from stands beside them, so that pictures of other numbers are out of date.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from matplotlib.figure import Figure

from torchcbl.files import write_atomically
from torchcbl.lab.arms import ARMS
from torchcbl.lab.measures import KIND_NAMES
from torchcbl.lab.measures.found import Measures
from torchcbl.lab.recipe import read_recipe
from torchcbl.lab.records import read_records
from torchcbl.lab.report import as_markdown
from torchcbl.lab.report.beyond import Beyond, draw_beyond, overall
from torchcbl.lab.report.beyond import beyond as beyond_all
from torchcbl.lab.report.beyond import markdown as beyond_as_markdown
from torchcbl.lab.report.drawing import as_png, styled
from torchcbl.lab.report.findings import Findings
from torchcbl.lab.report.measures import partial, sections
from torchcbl.lab.report.measures.section import Section
from torchcbl.lab.report.robustness import sentences
from torchcbl.lab.report.robustness import tables as noise_tables
from torchcbl.lab.report.steps import draw_by_step
from torchcbl.lab.robustness import Robustness, read_noisy

ROOT = Path(__file__).parent.parent
NAMES = ("speech", "controls", "evidence", "stability")
FIGURES = ROOT / "docs" / "figures"
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in NAMES))


@lru_cache
def findings(name: str) -> Findings:
    """Read the records of one study."""
    folder = ROOT / "results" / name
    return Findings(read_recipe(folder / "recipe.toml"), tuple(read_records(folder)), folder)


@lru_cache
def controls(name: str) -> tuple[Beyond, ...]:
    """Compare the loops of one study with its controls."""
    return beyond_all(findings(name))


def results(name: str) -> str:
    """Write the results of one study, its verdicts and its costs."""
    return as_markdown(findings(name))


def beyond(name: str) -> str:
    """Write what the loop of one study adds beyond each control."""
    return beyond_as_markdown(controls(name))


def verdict(name: str) -> str:
    """Write what one study is, how far it has come, what explains a gain, if there is any, and what it costs."""
    found = findings(name)
    parts = [f"**{found.label}.**", found.progress.partition(";")[0].rstrip(".") + "."]
    for one in controls(name):
        cost = found.relative(one.treatment, "inference")
        parts += [overall(one), f"An answer takes {cost:.2f} times the FLOPs of {found.baseline}'s."]
    return " ".join(parts)


@lru_cache
def measured(name: str) -> tuple[str, tuple[Section, ...]]:
    """Read what was measured of the runs of one study: what is missing, and the sections."""
    found = Measures.read(ROOT / "results" / name, KIND_NAMES)
    return partial(found), tuple(sections(found))


def measures(name: str) -> str:
    """Write what was measured of the runs of one study at every step."""
    missing, built = measured(name)
    parts = [f"{missing}\n"] if missing else []
    for section in built:
        parts.append(f"### {section.heading}\n")
        parts.append("".join(f"- {sentence}\n" for sentence in section.sentences))
        parts += [table.as_markdown() for table in section.tables]
    return "\n".join(parts)


def robustness(name: str) -> str:
    """Write what was measured of one study in noise."""
    folder = ROOT / "results" / name
    runs = tuple(read_noisy(path) for path in sorted((folder / "robustness").glob("*.json")))
    found = Robustness(read_recipe(folder / "recipe.toml"), runs)
    parts = [table.as_markdown() for table in noise_tables(found)]
    return "\n".join([parts[0], "".join(f"- {sentence}\n" for sentence in sentences(found)), *parts[1:]])


def stability(_: str) -> str:
    """Write what `torchcbl stability` found of each run that is kept."""
    rows = [
        "| Run | Samples | Fixed point found | Returns to it | Accuracy at step 0 (%) | step T | step 8 | step 64 |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for path in sorted((ROOT / "results" / "stability").glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        by_step = found["validation_accuracy_by_step"]
        counts = (found["samples"], found["fixed_points_found"], found["settles_locally"])
        accuracy = (f"{100 * by_step[step]:.1f}" for step in (0, found["trained_steps"], 8, 64))
        rows.append(f"| {' | '.join((path.stem, *map(str, counts), *accuracy))} |")
    return "\n".join(rows)


def arms(_: str) -> str:
    """Write what each arm isolates and holds equal."""
    rows = ["| Arm | What `cbl` adds beyond it is evidence for | Held equal |", "| :-- | :-- | :-- |"]
    rows += [f"| `{arm.name}` | {arm.isolates} | {arm.holds_equal} |" for arm in ARMS.values()]
    return "\n".join(rows)


Drawn = Iterator[tuple[str, str, Figure]]
"""Name, caption and figure."""


def forest(name: str) -> Drawn:
    """Draw what the loops of one study add beyond each control."""
    for one in controls(name):
        figure = draw_beyond(one)
        if figure is not None:
            yield f"beyond-{one.treatment}", f"{name}: what {one.treatment} adds beyond each control", figure


def figures(name: str) -> Drawn:
    """Draw what the loops of one study add, and the accuracy by step."""
    yield from forest(name)
    with styled():
        figure = draw_by_step(findings(name))
    yield "accuracy-by-step", f"{name}: test accuracy by step", figure


def drawn(name: str) -> Drawn:
    """Draw what was measured of one study."""
    for section in measured(name)[1]:
        for label, figure, caption in section.figures:
            yield f"{section.kind}-{label}", f"{name}: {caption}", figure


PICTURES = {"forest": forest, "figures": figures, "drawn": drawn}


def pictures(kind: str, name: str, page: Path, check: bool) -> str:
    """Draw the pictures of a page and show them; to check, say only which would be shown."""
    tables = measures(name) if kind == "drawn" else results(name) + beyond(name)
    digest = hashlib.blake2b(tables.encode(), digest_size=8).hexdigest()
    lines = [f"<!-- drawn from tables {digest} -->"]
    for label, caption, figure in PICTURES[kind](name):
        path = FIGURES / f"{name}-{label}.png"
        if not check:
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, as_png(figure))
        elif not path.is_file():
            lines.append(f"{path.name} is missing")
        lines.append(f"![{caption}]({path.relative_to(page.parent).as_posix()})")
    return "\n\n".join(lines)


KINDS = {
    "arms": arms,
    "beyond": beyond,
    "measures": measures,
    "results": results,
    "robustness": robustness,
    "stability": stability,
    "verdict": verdict,
}


def filled(text: str, page: Path, check: bool = False) -> str:
    """Return a page with every table as the records have it, and draw its pictures unless it is only checked."""

    def fill(match: re.Match[str]) -> str:
        kind, name = match[1], match[2]
        found = pictures(kind, name, page, check) if kind in PICTURES else KINDS[kind](name).strip()
        return f"<!-- {kind}:{name} -->\n\n{found}\n\n<!-- /{kind}:{name} -->"

    pattern = rf"<!-- ({'|'.join((*KINDS, *PICTURES))}):([\w.-]+) -->.*?<!-- /\1:\2 -->"
    return re.sub(pattern, fill, text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    arguments = parser.parse_args()
    stale = False
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = filled(old, page, arguments.check)
        stale = stale or old != new
        if not arguments.check:
            write_atomically(page, new)
    return int(arguments.check and stale)


if __name__ == "__main__":
    sys.exit(main())
