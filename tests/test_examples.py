"""The examples run, on real data, and are short."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SHORT = {
    "frozen_vit": ["bit for bit as it was: True", "trainable parameters: 9,024 of 35,786"],
    "bert_classifier": ["held-out accuracy at step 2: "],
    "lstm": ["test accuracy at step 4: "],
    "fixed_point": ["bounded: Refinement", "certified bound on gamma: 0.", "penalised: Refinement"],
    "own_adapter": ["Sharpen  live", "loaded again, it answers alike: True"],
}


@pytest.mark.parametrize("name", SHORT)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name in ("frozen_vit", "bert_classifier"):
        pytest.importorskip("transformers")
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(epochs=1)
    said = capsys.readouterr().out
    for part in SHORT[name]:
        assert part in said


def test_every_example_is_run() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*SHORT, "train_distributed"}
