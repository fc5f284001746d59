"""Fixtures for all tests: seeded, one thread."""

from __future__ import annotations

import signal

import pytest
import torch

collect_ignore_glob = ["*conftest.py"]  # they hold no doctests, and two of one name cannot be imported as modules


def pytest_configure() -> None:
    """Compute on one thread before the first fixture too: threads of a few processes on as many cores wait long.

    Let processes that tests start hear Ctrl-C, also where the tests run in the background of a shell.
    """
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Seed a module's own constants too: what it builds as it is imported must not depend on what came before."""
    if isinstance(collector, pytest.Module):
        torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
