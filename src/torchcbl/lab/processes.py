"""What every process of the laboratory that trains or measures is given: threads, an end, and its memory."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import platform
import threading

USERS_OWN = ("MALLOC_", "GLIBC_TUNABLES")
"""How the environment variables begin by which a user chooses what malloc does."""

# malloc.h of the GNU C library; 32 MiB is the largest threshold that it takes.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEPT = {_MMAP_THRESHOLD: 32 * 2**20, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 64 * 2**20}


def use_threads(threads: int) -> None:
    """Let torch compute on so many threads, in memory that this process keeps and does not fill before use.

    Where algorithms are to be deterministic, torch fills each new tensor with NaN before an operation writes to it,
    lest one be read first. No operation here does, so no number changes, and a step takes 8 to 12 % less time
    (results/benchmarks/allocator.json).
    """
    import torch

    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    keep_memory()


def keep_memory() -> bool:
    """Keep the memory of freed tensors for the next ones.

    Left to itself, the GNU C library hands memory back to the system once some dozens of megabytes are free, and every
    step of a training fetches it anew, page by page: 7,000 to 11,000 pages on CIFAR-10. No number changes, and a step
    takes 4 to 7 % less time on a virtual machine (results/benchmarks/allocator.json).

    Returns:
        Whether it could be had: not with another C library, and not where the user has set MALLOC_* or GLIBC_TUNABLES.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith(USERS_OWN) for name in os.environ):
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(option, value) == 1 for option, value in _KEPT.items())


def end_with_parent() -> None:
    """End this process when the one that started it ends, by whatever: what it writes is whole at any moment."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
