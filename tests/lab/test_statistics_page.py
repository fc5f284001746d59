"""docs/statistics.md: its code runs, and the numbers in its prose are what the functions give."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from scipy import stats

from torchcbl.lab import statistics
from torchcbl.lab.statistics import Comparison, Plan, Practical, compare, sd_limit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "statistics.md").read_text(encoding="utf-8")


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
    # a deviation seen that is no smaller than the true one plans enough seeds
    enough = [float(stats.chi2.sf(n - 1, n - 1)) for n in (2, 3, 5, 10)]
    assert enough == sorted(enough)
    assert enough[0] == pytest.approx(1 / 3, abs=0.02)
    assert enough[-1] < 0.45
    assert re.search(r"by the first in a\s+third \(n = 2\) to under half", PAGE)


def test_the_percentile_bootstrap_covers_as_its_docstring_says() -> None:
    rows = json.loads((ROOT / "results" / "benchmarks" / "intervals.json").read_text(encoding="utf-8"))["rows"]
    three, five, ten = (f"{100 * row['percentile'] / row['n']:.0f}%" for row in rows if row["kind"] == "percentile")
    assert three == "75%", "exactly 1 - 2 / 2^3: it misses where all three have one sign"
    said = " ".join((Comparison.__doc__ or "").split())
    assert f"in {three} of trials at n = 3, {five} at 5 and {ten} at 10" in said
