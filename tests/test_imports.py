"""What importing loads, and which half depends on which."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "torchcbl"


def modules_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing() -> None:
    loaded = modules_after("import torchcbl")
    assert "torch" not in loaded
    assert "torchcbl.loop" not in loaded


def test_the_library_loads_torch_and_nothing_heavier() -> None:
    alone = modules_after("import torch")
    loaded = modules_after("from torchcbl import *")
    assert "torchcbl.loop" in loaded
    assert {name for name in loaded if name.startswith("torchcbl.lab")} == set()
    added = {name.split(".")[0] for name in loaded - alone}
    heavy = {"numpy", "scipy", "lightning", "safetensors", "sklearn", "pyarrow", "matplotlib", "sympy"}
    assert not added & heavy
    assert "torch._dynamo" not in loaded - alone


def test_the_library_never_imports_the_laboratory() -> None:
    for path in SOURCE.rglob("*.py"):
        if "lab" in path.relative_to(SOURCE).parts or path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("torchcbl.lab")], path
