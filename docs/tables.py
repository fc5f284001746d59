"""Write the README's tables from the records in results/, or with --check say whether they are up to date.

    python docs/tables.py [--check]

Each pair of comments `<!-- results:NAME -->` and `<!-- /results:NAME -->` in the README holds the tables of
`results/NAME`, as `torchcbl report` makes them from the records alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.report import build_report

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"


def tables(name: str) -> str:
    """Build the report of one study in a scratch folder, since results/ holds records only, and return its tables."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / name
        shutil.copytree(ROOT / "results" / name, folder)
        build_report(folder)
        return (folder / "table.md").read_text(encoding="utf-8")


def filled(text: str) -> str:
    """Return the README with every table as the records have it."""

    def fill(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- results:{name} -->\n\n{tables(name).strip()}\n\n<!-- /results:{name} -->"

    return re.sub(r"<!-- results:([\w.-]+) -->.*?<!-- /results:\1 -->", fill, text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the README is out of date")
    arguments = parser.parse_args()
    old = README.read_text(encoding="utf-8")
    new = filled(old)
    if arguments.check:
        return int(old != new)
    write_atomically(README, new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
