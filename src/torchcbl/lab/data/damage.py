"""What to do with files that are damaged: refuse them by name, or leave them out and say so."""

from __future__ import annotations

import warnings
from pathlib import Path

DAMAGED = ("refuse", "skip")
SHOWN = 10


def check_damaged(damaged: str) -> None:
    """Raise ValueError unless `damaged` is "refuse" or "skip"."""
    if damaged not in DAMAGED:
        raise ValueError(f"damaged must be 'refuse' or 'skip', got {damaged!r}: choose what to do with damaged files")


def refusal(name: str, place: Path, reason: str) -> ValueError:
    """Word the refusal of a damaged file."""
    return ValueError(
        f"cannot use {name} of {place}: {reason}. Fetch the file again or remove it, or leave damaged files out "
        "with damaged='skip' (--set damaged=skip)"
    )


def tell_skipped(skipped: list[str], place: Path, damaged: str) -> None:
    """Warn of files left out, each `name: reason`; refuse them where that is asked for."""
    if not skipped:
        return
    if damaged == "refuse":
        name, _, reason = skipped[0].partition(": ")
        raise refusal(name, place, reason)
    shown = "; ".join(skipped[:SHOWN]) + (f"; and {len(skipped) - SHOWN:,} more" if len(skipped) > SHOWN else "")
    warnings.warn(f"left out {len(skipped):,} damaged files of {place}: {shown}", stacklevel=4)
