"""docs/models.md says what the records say, and the records cover every model and behaviour there is."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from behaviours import BEHAVIOURS
from subject import NotApplicableError
from torchcbl.adapters import ADAPTERS

ROOT = Path(__file__).parent.parent


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "docs" / "model_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    assert script.main(["render", "--check"]) == 0, "run python docs/model_table.py render"


@pytest.mark.parametrize(("which", "models"), [("transformers", "hub_models"), ("zoo", "zoo_models")])
def test_the_records_cover_everything(script: ModuleType, which: str, models: str) -> None:
    entries = json.loads((ROOT / "results" / "models" / f"{which}.json").read_text(encoding="utf-8"))["models"]
    again = f"run python docs/model_table.py run --models {which}"
    assert list(entries) == list(importlib.import_module(models).MODELS), again
    for entry in entries.values():
        assert list(entry["behaviours"]) == list(BEHAVIOURS) == list(script.TITLES), again
        assert set(entry["choices"]) == {*ADAPTERS, "literal", "synchronous"}, again


def test_an_out_of_date_page_is_noticed(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "PAGE", tmp_path / "models.md")
    monkeypatch.setattr(script, "RECORDS", tmp_path)
    script.PAGE.write_text("before\n<!-- models:zoo -->\nold\n<!-- /models:zoo -->\nafter\n")
    assert script.main(["render", "--check"]) == 1
    assert script.main(["render"]) == 0
    assert script.main(["render", "--check"]) == 0
    assert "Not recorded yet" in script.PAGE.read_text()


def test_whatever_goes_wrong_is_in_the_table(script: ModuleType) -> None:
    def fails() -> None:
        raise RuntimeError("the reason\nand more")

    def cannot() -> None:
        raise NotApplicableError("nobody could")

    notes: list[str] = []
    findings = [script.examine(check) for check in (lambda: None, cannot, fails, fails)]
    assert [script._cell(found, notes) for found in findings] == ["pass", "n/a [1]", "FAIL [2]", "FAIL [2]"]
    assert notes == ["n/a: nobody could", "FAIL: RuntimeError: the reason"]
