"""docs/statistics.md: its code runs, and the numbers in its prose are what the functions give."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchcbl.lab import statistics
from torchcbl.lab.statistics import Comparison, Plan, Practical, compare, sd_limit

PAGE = (Path(__file__).parents[2] / "docs" / "statistics.md").read_text(encoding="utf-8")


def test_its_code_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names: dict[str, object] = {}
    exec(code, names)
    result = names["result"]
    assert isinstance(result, Comparison)
    assert result.difference_shown
    assert isinstance(statistics.practical(result.differences), Practical)
    assert isinstance(statistics.plan(result.differences), Plan)


def test_its_functions_are_there() -> None:
    for line in PAGE.splitlines():
        if line.startswith("| ") and "`" in line:
            for name in re.findall(r"`(\w+)", line):
                assert hasattr(statistics, name), name


def test_its_numbers_hold() -> None:
    limits = [sd_limit(1.0, n) for n in (5, 2)]
    assert "(1.56 times as large at n = 5, 3.95 times at n = 2)" in PAGE
    assert limits == pytest.approx([1.56, 3.95], abs=0.005)
    floors = [
        compare(dict(enumerate([1.0, 2.0, 3.0, 4.0, 5.0, 6.0][:n])), dict.fromkeys(range(n), 0.0)) for n in (5, 6)
    ]
    assert [one.wilcoxon.smallest_p for one in floors if one.wilcoxon] == pytest.approx([0.0625, 0.031], abs=5e-4)
    assert "0.0625 for 5, 0.031 for 6" in PAGE
