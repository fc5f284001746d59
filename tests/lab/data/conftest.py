from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_files import ROWS, encode, random_pixels, write_parquet
from web_server import WebServer

from torchcbl.lab.data.cifar10 import FILES, load_cifar10
from torchcbl.lab.data.images import Images


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give every test a cache of its own and no data folder but the one it names."""
    monkeypatch.setenv("TORCHCBL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHCBL_DATA", raising=False)
    monkeypatch.delenv("TORCHCBL_HUB", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def small_cifar(tmp_path: Path) -> Path:
    """Sixty and twenty random images, labels 0..9 in turn, under the names of CIFAR-10's files."""
    folder = tmp_path / "data" / "cifar10" / "plain_text"
    folder.mkdir(parents=True)
    for seed, (part, rows) in enumerate(ROWS.items()):
        images = [encode(pixels) for pixels in random_pixels(rows, seed)]
        write_parquet(folder / FILES[part], [*images], [row % 10 for row in range(rows)])
    return folder


@pytest.fixture(scope="session")
def real_cifar() -> tuple[Images, Images]:
    """Load the real CIFAR-10, through the user's own cache: decoding it once is enough."""
    folder = Path(os.environ.get("TORCHCBL_DATA") or "nowhere")
    if not (folder / "cifar10" / "plain_text" / FILES["train"]).is_file():
        pytest.skip("real CIFAR-10 is not here: set TORCHCBL_DATA to the folder that holds cifar10/plain_text")
    return load_cifar10(folder)


@pytest.fixture
def server() -> Iterator[WebServer]:
    server = WebServer()
    server.start()
    yield server
    server.stop()
