import sys
from pathlib import Path

import pytest

from torchcbl.lab.inspection import describe_sites, find_model

MODELS = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn

@dataclass
class Sizes:  # looks its own module up
    hidden: int = 8

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

def broken():
    raise RuntimeError("no weights here")

def needy(width):
    return nn.Linear(width, 2)

def recurrent():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(4, 6, batch_first=True), nn.Linear(6, 3)

        def forward(self, x):
            return self.head(self.lstm(x)[0])

    return Tagger()

number = lambda: 3
bare = nn.Identity
"""


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "my_models_for_sites.py"
    path.write_text(MODELS)
    return path


def test_a_model_from_a_file(models: Path) -> None:
    assert describe_sites(f"{models}:build", (1, 4)).splitlines() == [
        "0  Linear  40 parameters  h: (B, 8)",
        "1  ReLU    0 parameters   h: (B, 8)",
        "2  Linear  18 parameters  h: (B, 2)",
    ]


def test_a_file_finds_what_lies_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "layers_beside_it.py").write_text("from torch import nn\nNet = nn.ReLU\n")
    (tmp_path / "a_model_with_layers.py").write_text("from layers_beside_it import Net\nbuild = Net\n")
    assert type(find_model(f"{tmp_path / 'a_model_with_layers.py'}:build")).__name__ == "ReLU"


def test_an_input_larger_than_memory(models: Path) -> None:
    with pytest.raises(ValueError, match=r"an input of shape \(9999999999, 9999999\) cannot be made: "):
        describe_sites(f"{models}:build", (9999999999, 9999999))


def test_a_model_from_a_module_in_the_current_folder(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models.parent)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert len(list(find_model("my_models_for_sites:build").children())) == 3


def test_a_site_that_returns_a_tuple(models: Path) -> None:
    assert describe_sites(f"{models}:recurrent", (2, 5, 4)).splitlines() == [
        "lstm  LSTM    288 parameters  h: (B, 5, 6) at [0]",
        "head  Linear  21 parameters   h: (B, 5, 3)",
    ]


def test_a_model_without_submodules(models: Path) -> None:
    assert describe_sites(f"{models}:bare", (1, 4)).startswith("none: ")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("biuld", ValueError, r"has no 'biuld': did you mean 'build'\?"),
        ("broken", ValueError, "without arguments failed: RuntimeError: no weights here"),
        ("needy", ValueError, "without arguments failed: TypeError: .*width"),
        ("number", TypeError, "must give an nn.Module, got int"),
    ],
)
def test_what_is_no_model(models: Path, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_model(f"{models}:{name}")


def test_a_module_that_cannot_be_imported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_package cannot be imported: ModuleNotFoundError"):
        find_model("no_such_package:build")
    with pytest.raises(ValueError, match=r"none\.py cannot be imported: FileNotFoundError"):
        find_model(f"{tmp_path / 'none.py'}:build")
    with pytest.raises(ValueError, match="must be StandardCNN"):
        find_model(":build")


def test_an_input_of_the_wrong_shape(models: Path) -> None:
    with pytest.raises(ValueError, match=r"does not run on an input of shape \(1, 7\)"):
        describe_sites(f"{models}:build", (1, 7))
