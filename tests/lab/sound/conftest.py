from __future__ import annotations

from pathlib import Path

import pytest

from torchcbl.lab.sound.front_end import MelFrontEnd


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own."""
    monkeypatch.setenv("TORCHCBL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def front_end() -> MelFrontEnd:
    return MelFrontEnd()
