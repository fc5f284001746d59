"""docs/adapters.md: its tables are what is measured, and its own adapter runs."""

from __future__ import annotations

import contextlib
import importlib
import io
import re
from pathlib import Path
from types import ModuleType

import pytest

from torchcbl.adapters import ADAPTERS


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator of the tables in docs/adapters.md."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "docs"))
    return importlib.import_module("adapter_costs")


def test_the_page_has_the_costs_that_are_measured(costs: ModuleType) -> None:
    page = costs.PAGE.read_text(encoding="utf-8")
    assert list(costs.COSTS) == list(ADAPTERS)
    assert costs.filled(page) == page, "docs/adapters.md is out of date: run python docs/adapter_costs.py"


def test_a_wrong_formula_and_a_lost_marker_are_errors(costs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(costs.COSTS, "gate", costs.Cost("", "", lambda _: (1, 1)))
    with pytest.raises(
        RuntimeError, match="gate: measured 4160 parameters and 8192 FLOPs, but the formulas say 1 and 2"
    ):
        costs.measure("gate", costs.make_cnn)
    monkeypatch.setattr(costs, "measured", str)
    with pytest.raises(ValueError, match="0 places marked costs:formulas, expected one"):
        costs.filled("")


def test_the_pages_own_adapter_runs(costs: ModuleType) -> None:
    page = costs.PAGE.read_text(encoding="utf-8")
    code, expected = re.findall(r"```python\n(import.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "adapters.md", "exec"), {})
    assert printed.getvalue() == expected
