"""Fixtures for all tests: seeded, one thread."""

from __future__ import annotations

import pytest
import torch

collect_ignore_glob = ["*conftest.py"]  # they hold no doctests, and two of one name cannot be imported as modules


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
