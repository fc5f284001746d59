"""Examine networks people use and write docs/models.md from what was found.

    python docs/model_table.py run --models transformers   # or zoo, in the environment with timm and torchvision
    python docs/model_table.py render [--check]

`run` writes `results/models/NAME.json`; `render` fills the page's tables from those records alone.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import torch
from torch import nn

import torchcbl as cbl
from behaviours import BEHAVIOURS, ESSENTIAL
from subject import NotApplicableError, Subject
from torchcbl.adapters import ADAPTERS
from torchcbl.files import write_atomically

if TYPE_CHECKING:
    from hub_models import Model

ROOT = Path(__file__).parent.parent
PAGE, RECORDS = ROOT / "docs" / "models.md", ROOT / "results" / "models"
MODULES = {"transformers": "hub_models", "zoo": "zoo_models"}
PACKAGES = ("torchcbl", "torch", "transformers", "timm", "torchvision")
CHOICES = [("adapter", name) for name in ADAPTERS] + [("schedule", name) for name in ("literal", "synchronous")]
TITLES = {
    "identity_start": "identity start",
    "steps_zero_equality": "steps=0",
    "output_type": "output type",
    "gradients_reach": "gradients",
    "audit_truthful": "audit",
    "batch_independence": "batch",
    "save_load_round_trip": "save, load",
    "deepcopy_and_pickle": "copies",
    "prefix_flops": "prefix once",
    "train_eval_mode": "modes",
    "repr_tells": "repr",
}
PASS, NOT_APPLICABLE, REFUSED, FAIL = "pass", "n/a", "refused", "FAIL"
Finding = list[str]
"""What was found, and for anything but a pass, why."""
Entry = dict[str, dict[str, Finding]]
"""The findings on one model: by behaviour, and by adapter or schedule."""


def examine(check: Callable[[], None]) -> Finding:
    """Run a check and say what came of it."""
    try:
        check()
    except NotApplicableError as reason:
        return [NOT_APPLICABLE, str(reason)]
    except Exception as error:  # whatever it is, it goes into the table
        return [FAIL, f"{type(error).__name__}: {error}".splitlines()[0]]
    return [PASS]


def examine_choice(subject: Subject, kind: str) -> Finding:
    """Examine a subject by the essential behaviours; an adapter that does not suit the sites is to be refused."""
    if kind == "adapter":
        try:
            cbl.ContextLoop(
                subject.backbone(), subject.sites, subject.batch(2), subject.adapter, subject.make_context()
            )
        except ValueError as error:
            return [REFUSED, str(error).splitlines()[0]]
    found = [examine(lambda behaviour=name: BEHAVIOURS[behaviour](subject)) for name in ESSENTIAL]  # type: ignore[misc]
    return next((one for one in found if one[0] != PASS), [PASS])


def examine_model(model: Model) -> Entry:
    """Examine one model: every behaviour, then every adapter and schedule."""

    fused = any(isinstance(module, nn.MultiheadAttention) for module in model.build().modules())

    def subject(**choice: str) -> Subject:
        tolerance = 1e-6 if fused and choice == {"adapter": "token"} else 0.0  # tokens need the path that is not fused
        return Subject(
            model.build,
            model.sites,
            model.batch,
            **choice,
            context=model.context,
            tolerance=tolerance,
            reuse=bool(choice),
        )

    return {
        "cut": {"cut": [subject().net().plan.kind]},
        "behaviours": {name: examine(lambda check=check: check(subject())) for name, check in BEHAVIOURS.items()},  # type: ignore[misc]
        "choices": {name: examine_choice(subject(**{kind: name}), kind) for kind, name in CHOICES},
    }


def run(which: str, only: Sequence[str] = ()) -> None:
    """Examine every model of a collection, or those named, and write the record."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    before = json.loads((RECORDS / f"{which}.json").read_text()) if only else {"models": {}, "seconds": 0}
    begin, entries = time.perf_counter(), before["models"]
    for name, model in importlib.import_module(MODULES[which]).MODELS.items():
        if only and name not in only:
            continue
        torch.manual_seed(0)
        entries[name] = examine_model(model)
        found = [finding[0] for part in ("behaviours", "choices") for finding in entries[name][part].values()]
        print(f"{name}: {', '.join(f'{found.count(kind)} {kind}' for kind in dict.fromkeys(found))}", flush=True)
    record = {
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "device": "cpu",
        "seconds": before["seconds"] + round(time.perf_counter() - begin),
        "models": entries,
    }
    write_atomically(RECORDS / f"{which}.json", json.dumps(record, indent=1) + "\n")


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def tables(which: str) -> str:
    """Write the two tables of a collection, their footnotes and a line that counts."""
    path = RECORDS / f"{which}.json"
    if not path.is_file():
        return f"Not recorded yet: `python docs/model_table.py run --models {which}`."
    record = json.loads(path.read_text(encoding="utf-8"))
    models: dict[str, Entry] = record["models"]
    notes: list[str] = []
    first = _table(
        {name: {**e["cut"], **e["behaviours"]} for name, e in models.items()}, {"cut": "cut", **TITLES}, notes
    )
    second = _table({name: e["choices"] for name, e in models.items()}, {name: name for _, name in CHOICES}, notes)
    numbered = [f"{index}. {note}" for index, note in enumerate(notes, start=1)]
    return "\n".join([_summary(record), "", *first, "", *second, "", *numbered]).strip()


def _summary(record: dict[str, object]) -> str:
    models, versions = record["models"], record["versions"]
    assert isinstance(models, dict)
    assert isinstance(versions, dict)
    found = [f[0] for entry in models.values() for part in ("behaviours", "choices") for f in entry[part].values()]
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in (PASS, NOT_APPLICABLE, REFUSED, FAIL))
    made_with = ", ".join(f"{package} {version}" for package, version in versions.items())
    return f"{len(models)} models, {len(found)} checks: {counts} ({made_with}; {record['device']})."


def _table(rows: dict[str, dict[str, Finding]], titles: dict[str, str], notes: list[str]) -> list[str]:
    lines = [f"| Model | {' | '.join(titles.values())} |", f"| :-- |{' :-- |' * len(titles)}"]
    for name, findings in rows.items():
        cells = [_cell(findings[key], notes) for key in titles]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _cell(finding: Finding, notes: Sequence[str]) -> str:
    """Show what was found, with the number of the note that says why."""
    if len(finding) == 1:
        return finding[0]
    assert isinstance(notes, list)
    note = f"{finding[0]}: {finding[1]}"
    if note not in notes:
        notes.append(note)
    return f"{finding[0]} [{notes.index(note) + 1}]"


def filled(text: str) -> str:
    """Return the page with every table as the records have it."""

    def fill(match: re.Match[str]) -> str:
        return f"<!-- models:{match[1]} -->\n\n{tables(match[1])}\n\n<!-- /models:{match[1]} -->"

    return re.sub(r"<!-- models:(\w+) -->.*?<!-- /models:\1 -->", fill, text, flags=re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or render."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run_parser = commands.add_parser("run")
    run_parser.add_argument("--models", choices=sorted(MODULES), required=True)
    run_parser.add_argument("--only", nargs="+", default=[], help="examine these again and keep the rest of the record")
    commands.add_parser("render").add_argument("--check", action="store_true", help="exit with 1 if out of date")
    chosen = parser.parse_args(arguments)
    if chosen.command == "run":
        run(chosen.models, chosen.only)
        return 0
    old = PAGE.read_text(encoding="utf-8")
    new = filled(old)
    if chosen.check:
        return int(old != new)
    write_atomically(PAGE, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
