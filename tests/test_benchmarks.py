"""The benchmarks run, in a small size, and their records make the tables of the docs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def run(script: str, path: Path, *options: str) -> list[dict[str, object]]:
    command = [sys.executable, str(ROOT / "benchmarks" / script), *options, "--json", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["versions"]["torch"]
    assert record["machine"]["device"] == "cpu"
    assert script in record["command"]
    return record["rows"]


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The generator of the tables in the docs."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("benchmark_tables")


@pytest.mark.slow
def test_memory_is_flat_in_the_number_of_steps(tmp_path: Path) -> None:
    rows = run(
        "memory.py", tmp_path / "memory.json", "--steps", "1", "4", "--runs", "1", "--width", "4", "--no-resident"
    )
    grown = {(row["rule"], row["alpha"], row["solver"]) for row in rows if row["ratio"] > 1.15}  # type: ignore[operator]
    assert {("bptt", 0.0, "picard"), ("bptt", 0.5, "picard")} <= grown
    assert ("checkpointed", 0.0, "picard") not in grown


@pytest.mark.slow
def test_solvers_take_fewer_evaluations_than_torchdeq(tmp_path: Path) -> None:
    pytest.importorskip("torchdeq")
    rows = run("solvers.py", tmp_path / "solvers.json", "--cases", "tanh", "--batch", "8", "--runs", "1")
    forward = {(row["library"], row["solver"]): row for row in rows if not row["backward"]}
    ours, theirs = forward["torchcbl", "Broyden()"], forward["torchdeq", "broyden"]
    assert ours["evaluations"] < 0.7 * theirs["evaluations"]  # type: ignore[operator]
    for row in rows:
        if row["library"] == "torchcbl" and row["kind"] in ("anderson", "broyden", "newton"):
            assert row["met"] == row["batch"] == 8, row


def test_intervals_hold_the_truth(tmp_path: Path) -> None:
    rows = run("intervals.py", tmp_path / "intervals.json", "--trials", "2", "--studies", "400", "--images", "200")
    looks = {len(row["looks"]): row["shown"] for row in rows if row["kind"] == "looks"}  # type: ignore[arg-type]
    assert 5 <= looks[1] < looks[8]  # type: ignore[operator]
    few = next(row for row in rows if row["kind"] == "percentile")
    assert few["seeds"] == 3
    assert few["percentile"] / few["n"] == pytest.approx(0.75, abs=0.1)  # type: ignore[operator]
    assert few["n"] == 400
    assert not any(row["narrower"] for row in rows if row["kind"] == "coverage")


def test_building_takes_a_number_of_forward_passes(tmp_path: Path) -> None:
    rows = run("building.py", tmp_path / "building.json", "--cases", "CNN", "--runs", "2")
    assert [row["cut"] for row in rows] == ["traced", "replayed"]
    assert all(0 < row["forward"] < row["quartile_low"] <= row["seconds"] for row in rows)  # type: ignore[operator]


@pytest.mark.parametrize("page", ["choosing.md", "options.md", "statistics.md"])
def test_the_pages_have_the_tables_of_the_records(tables: ModuleType, page: str) -> None:
    text = (tables.DOCS / page).read_text(encoding="utf-8")
    assert tables.filled(page, text) == text, f"docs/{page} is out of date: run python docs/benchmark_tables.py"


def test_a_lost_marker_is_an_error(tables: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"choosing.md has 0 places marked benchmark:memory, expected one"):
        tables.filled("choosing.md", "")
