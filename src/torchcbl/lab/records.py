"""The record of one finished run: what was trained, on what, and every number that came out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torchcbl.files import write_atomically
from torchcbl.lab.codec import VersionError, as_json, from_json, of_another_version, schema_of

SCHEMA = 1
RECORDS = "[!.]*.json"  # without the companions that macOS leaves on foreign disks

Matrix = tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch measured.

    Args:
        epoch: Its number, from 1.
        learning_rate: The optimiser's step size during the epoch.
        train_loss: Mean training loss over the epoch's batches.
        validation_loss: Mean cross entropy after the epoch, one per step tau = 0..T (one without a loop).
        validation_accuracy: Fraction classified rightly, in [0, 1], one per step tau.
        seconds: Wall-clock time of the epoch, validation included.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    validation_loss: tuple[float, ...]
    validation_accuracy: tuple[float, ...]
    seconds: float

    def __post_init__(self) -> None:
        _check_steps("validation", self.validation_loss, self.validation_accuracy)


@dataclass(frozen=True)
class TestRecord:
    """What the one look at the test data gave, after the last epoch.

    Args:
        n: Number of test samples.
        loss: Mean cross entropy, one per step tau = 0..T (one number without a loop).
        accuracy: Fraction classified rightly, in [0, 1], one per step tau.
        confusion: How many samples of each class (row) were taken for each class (column), per step tau; none in
            records of earlier versions.
    """

    __test__ = False  # not a test case, whatever pytest makes of the name

    n: int
    loss: tuple[float, ...]
    accuracy: tuple[float, ...]
    confusion: tuple[Matrix, ...] | None = None

    def __post_init__(self) -> None:
        _check_steps("test", self.loss, self.accuracy)
        if self.confusion is not None:
            _check_confusion(self.confusion, len(self.accuracy), self.n)

    @property
    def balanced_accuracy(self) -> tuple[float, ...] | None:
        """Mean over the classes of the fraction classified rightly, per step tau: each class counts alike."""
        if self.confusion is None:
            return None
        return tuple(mean_recall(matrix) for matrix in self.confusion)


@dataclass(frozen=True)
class TrialRecord:
    """A run that was trained and validated, and has not seen the test data; the attributes are the JSON file's keys.

    A loss that is not finite is written as `null` and read back as NaN: divergence is data.

    Args:
        schema: Version of this layout.
        study: The recipe's name.
        arm: What was trained: "standard", "cbl", ...
        seed: Number of the run; runs of different arms are paired by it.
        recipe: The resolved recipe as flat keys and values.
        versions: Of torchcbl, torch, python, lightning and numpy.
        machine: `system`, `processor`, `cores`, `threads`, `device`.
        parameters: How many scalars: `backbone`, `added`.
        flops: Per sample: `first` (step 0), `step` (one more step), `inference` (first + T * step), and `training`
            (forward and backward of the loss), which records of earlier versions have not.
        epochs: One entry per epoch, in order.
        seconds: Wall-clock: `training`, and `total` with set-up and test, summed over interruptions.
        finished: When, in ISO 8601 with time zone.
        classes: Names of the classes; none in records of earlier versions.
    """

    schema: int = field(metadata=schema_of(SCHEMA))
    study: str
    arm: str
    seed: int
    recipe: Mapping[str, object]
    versions: Mapping[str, str]
    machine: Mapping[str, object]
    parameters: Mapping[str, int]
    flops: Mapping[str, float]
    epochs: tuple[EpochRecord, ...]
    seconds: Mapping[str, float]
    finished: str
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the run, `<arm>-seed<seed>`: the file and folder names in a study."""
        return run_name(self.arm, self.seed)


Kind = TypeVar("Kind", bound=TrialRecord)


@dataclass(frozen=True)
class Record(TrialRecord):
    """One finished run of a study, tested once.

    Args:
        test: The test result; the other attributes are those of `TrialRecord`.
    """

    test: TestRecord = field(kw_only=True)


def run_name(arm: str, seed: int) -> str:
    """Name a run.

    Example:
        >>> run_name("cbl", 3)
        'cbl-seed3'
    """
    return f"{arm}-seed{seed}"


def record_path(folder: Path, arm: str, seed: int) -> Path:
    """Where the record of a run lies in the study `folder`."""
    return folder / "records" / f"{run_name(arm, seed)}.json"


def write_record(folder: Path, record: Record) -> Path:
    """Write a record into the study `folder`, whole or not at all, and return its path.

    Raises:
        OSError: The disk is full or the folder cannot be written.
    """
    path = record_path(folder, record.arm, record.seed)
    write_atomically(path, as_json(record))
    return path


def read_record(path: Path) -> Record:
    """Read one record.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged or of another layout; the message names it and says what to do.
    """
    return _read(path, Record, "compare")


def read_trial(path: Path) -> TrialRecord:
    """Read the record of a run of a sweep.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another layout, or holds a test result, which no sweep may have.
    """
    return _read(path, TrialRecord, "sweep")


def read_records(folder: Path) -> list[Record]:
    """Read all records of the study `folder`, ordered by arm and seed; none yet is an empty list.

    Raises:
        ValueError: A record is damaged.
    """
    records = []
    for path in (folder / "records").glob(RECORDS):
        record = read_record(path)
        if path.stem != run_name(record.arm, record.seed):
            raise ValueError(
                f"record {path} says it is of {run_name(record.arm, record.seed)}: it was renamed or edited. Delete "
                "the file and run the same `torchcbl compare` again: only this run is repeated."
            )
        records.append(record)
    return sorted(records, key=lambda record: (record.arm, record.seed))


def _check_steps(what: str, loss: tuple[float, ...], accuracy: tuple[float, ...]) -> None:
    if not loss or len(loss) != len(accuracy):
        raise ValueError(
            f"{what} needs one loss and one accuracy per step, got {len(loss)} losses and {len(accuracy)} accuracies"
        )
    if not all(0 <= value <= 1 for value in accuracy):
        raise ValueError(f"{what} accuracy must be fractions in [0, 1], got {list(accuracy)}")


def _check_confusion(confusion: tuple[Matrix, ...], steps: int, n: int) -> None:
    sizes = {len(matrix) for matrix in confusion} | {len(row) for matrix in confusion for row in matrix}
    totals = {sum(map(sum, matrix)) for matrix in confusion}
    if len(confusion) != steps or len(sizes) != 1 or totals != {n}:
        raise ValueError(
            f"confusion needs a square matrix per step whose counts sum to n, got {len(confusion)} matrices for "
            f"{steps} steps, sizes {sorted(sizes)}, sums {sorted(totals)} for n = {n}"
        )


def mean_recall(matrix: Matrix) -> float:
    """Average over the classes what fraction of each was taken for itself; classes without samples are left out.

    Example:
        >>> mean_recall(((8, 0), (1, 1)))
        0.75
    """
    recalls = [row[index] / sum(row) for index, row in enumerate(matrix) if sum(row)]
    return math.fsum(recalls) / len(recalls)


def _check_keys(what: str, values: Mapping[str, float], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"{what} lacks {missing}")


def _read(path: Path, kind: type[Kind], command: str) -> Kind:
    try:
        record = from_json(kind, path.read_bytes())
        _check_keys("parameters", record.parameters, ("backbone", "added"))
        _check_keys("flops", record.flops, ("first", "step", "inference"))
        _check_keys("seconds", record.seconds, ("training", "total"))
    except VersionError as error:
        raise of_another_version(path, error) from error
    except ValueError as error:
        raise ValueError(
            f"record {path} is damaged: {error}. Delete the file and run the same `torchcbl {command}` again: "
            "only this run is repeated."
        ) from error
    return record
