"""The README's first snippet runs as pasted and prints what the README says."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def run_snippet() -> str:
    code = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    return printed.getvalue()


def test_the_first_snippet_prints_what_it_says() -> None:
    expected = re.findall(r"```text\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert run_snippet() == expected


def test_the_tables_are_those_of_the_records() -> None:
    done = subprocess.run([sys.executable, str(README.parent / "docs" / "tables.py"), "--check"], check=False)
    assert done.returncode == 0, "the README's tables are out of date: run make tables"
