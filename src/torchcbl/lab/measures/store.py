"""Results on disk: one file per run and kind, written whole or not at all, checked when they are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from torchcbl.files import write_atomically
from torchcbl.lab.codec import VersionError, as_json, from_json, of_another_version, schema_of
from torchcbl.lab.records import run_name

SCHEMA = 1
DIGITS = 7


@dataclass(frozen=True)
class About:
    """Which run was measured, on how much, with what.

    Args:
        kind: The kind of measure.
        arm: The run's arm.
        seed: Its seed.
        finished: When the run was finished, by its record; a run that was repeated since is measured anew.
        n: Number of test samples that were looked at.
        settings: What else the numbers depend on.
        versions: Of torchcbl, torch, python, lightning and numpy.
        machine: `system`, `processor`, `cores`, `threads`, `device`.
        seconds: Wall-clock time that measuring took.
        schema: Version of this layout.
    """

    kind: str
    arm: str
    seed: int
    finished: str
    n: int
    settings: Mapping[str, object]
    versions: Mapping[str, str]
    machine: Mapping[str, object]
    seconds: float
    schema: int = field(default=SCHEMA, metadata=schema_of(SCHEMA))

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")

    @property
    def run(self) -> str:
        """`<arm>-seed<seed>`."""
        return run_name(self.arm, self.seed)


class Result(Protocol):
    """What a measure leaves of one run: a frozen dataclass that checks itself."""

    @property
    def about(self) -> About:
        """Which run it is of."""


Found = TypeVar("Found", bound=Result)


def result_path(folder: Path, kind: str, run: str) -> Path:
    """Where the result of a run lies in a study's folder."""
    return folder / "measures" / kind / f"{run}.json"


def write_result(folder: Path, found: Result) -> Path:
    """Write a result into a study's folder, and return its path.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    path = result_path(folder, found.about.kind, found.about.run)
    write_atomically(path, as_json(found, DIGITS))
    return path


def read_result(kind: type[Found], path: Path) -> Found:
    """Read one result.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or of another run or kind than its place says.
    """
    try:
        found = from_json(kind, path.read_bytes())
        if (found.about.kind, found.about.run) != (path.parent.name, path.stem):
            raise ValueError(f"it says it is {found.about.kind} of {found.about.run}")
    except VersionError as error:
        raise of_another_version(path, error) from error
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged: {error}. Delete the file and run the same `torchcbl measure` again: only this run is "
            "measured again."
        ) from error
    return found
