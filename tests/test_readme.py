"""The README's snippets run as pasted, one after the other, and print what the README says."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

import torchcbl as cbl

README = Path(__file__).parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippets_print_what_they_say() -> None:
    codes, expected = blocks("python"), blocks("text")
    assert len(codes) == len(expected) == 3
    names: dict[str, object] = {}
    for code, text in zip(codes, expected, strict=True):
        if "transformers" in code:
            pytest.importorskip("transformers")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), names)
        assert printed.getvalue() == text


def test_the_options_page_runs_as_pasted() -> None:
    page = README.parent / "docs" / "options.md"
    codes = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert len(codes) == 2
    layers = {f"layer{i}": nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for i in range(1, 5)}
    model = nn.Sequential(OrderedDict(conv1=nn.Linear(4, 8), **layers, fc=nn.Linear(8, 3)))
    names = {"cbl": cbl, "nn": nn, "model": model, "sites": ["layer3"], "x": torch.randn(5, 4)}
    for code in codes:
        exec(compile(code, str(page), "exec"), names)
    assert cbl.sites(model, example=names["x"])[:3] == ["conv1", "layer1", "layer1.0"]


def test_the_tables_are_those_of_the_records() -> None:
    done = subprocess.run([sys.executable, str(README.parent / "docs" / "tables.py"), "--check"], check=False)
    assert done.returncode == 0, "the README's tables are out of date: run make tables"
