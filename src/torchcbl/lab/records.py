"""The record of one finished run: what was trained, on what, and every number that came out."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from torchcbl.files import write_atomically

SCHEMA = 1

Kind = TypeVar("Kind")
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

    schema: int
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
    return _read(path, _record, "compare")


def read_trial(path: Path) -> TrialRecord:
    """Read the record of a run of a sweep.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, of another layout, or holds a test result, which no sweep may have.
    """
    return _read(path, _untested, "sweep")


def as_json(record: TrialRecord) -> str:
    """Write a record as JSON, a key to a line, a row of a confusion matrix to a line."""
    text = json.dumps(_plain(dataclasses.asdict(record)), indent=1, allow_nan=False) + "\n"
    return re.sub(
        r"\[\s+(?:\d+,\s+)*\d+\s+\]", lambda row: " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]"), text
    )


def read_records(folder: Path) -> list[Record]:
    """Read all records of the study `folder`, ordered by arm and seed; none yet is an empty list.

    Raises:
        ValueError: A record is damaged.
    """
    records = []
    for path in (folder / "records").glob("*.json"):
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


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _read(path: Path, parse: Callable[[Mapping[str, object]], Kind], command: str) -> Kind:
    try:
        return parse(_of(dict, json.loads(path.read_bytes()), "the file"))
    except (ValueError, KeyError, TypeError) as error:
        reason = f"key {error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"record {path} is damaged: {reason}. Delete the file and run the same `torchcbl {command}` again: "
            "only this run is repeated."
        ) from error


def _record(fields: Mapping[str, object]) -> Record:
    return Record(**vars(_trial(fields)), test=_test(_of(dict, fields["test"], "test")))


def _untested(fields: Mapping[str, object]) -> TrialRecord:
    if "test" in fields:
        raise ValueError("it holds a test result, which a sweep must not look at")
    return _trial(fields)


def _trial(fields: Mapping[str, object]) -> TrialRecord:
    if fields["schema"] != SCHEMA:
        raise ValueError(f"it has schema {fields['schema']!r}, this torchcbl reads schema {SCHEMA}")
    return TrialRecord(
        schema=SCHEMA,
        study=_of(str, fields["study"], "study"),
        arm=_of(str, fields["arm"], "arm"),
        seed=_of(int, fields["seed"], "seed"),
        recipe=_of(dict, fields["recipe"], "recipe"),
        versions={key: _of(str, item, key) for key, item in _of(dict, fields["versions"], "versions").items()},
        machine=_of(dict, fields["machine"], "machine"),
        parameters=_keyed(int, fields["parameters"], "parameters", ("backbone", "added")),
        flops=_keyed(float, fields["flops"], "flops", ("first", "step", "inference"), optional=("training",)),
        epochs=tuple(_epoch(item) for item in _of(list, fields["epochs"], "epochs")),
        seconds=_keyed(float, fields["seconds"], "seconds", ("training", "total")),
        finished=_of(str, fields["finished"], "finished"),
        classes=tuple(_of(str, name, "classes") for name in _of(list, fields.get("classes", []), "classes")),
    )


def _epoch(data: object) -> EpochRecord:
    fields = _of(dict, data, "an epoch")
    return EpochRecord(
        epoch=_of(int, fields["epoch"], "epoch"),
        learning_rate=_of(float, fields["learning_rate"], "learning_rate"),
        train_loss=_of(float, fields["train_loss"], "train_loss"),
        validation_loss=_numbers(fields["validation_loss"], "validation_loss"),
        validation_accuracy=_numbers(fields["validation_accuracy"], "validation_accuracy"),
        seconds=_of(float, fields["seconds"], "seconds"),
    )


def _test(fields: Mapping[str, object]) -> TestRecord:
    return TestRecord(
        n=_of(int, fields["n"], "n"),
        loss=_numbers(fields["loss"], "loss"),
        accuracy=_numbers(fields["accuracy"], "accuracy"),
        confusion=None if fields.get("confusion") is None else _matrices(fields["confusion"]),
    )


def _matrices(value: object) -> tuple[Matrix, ...]:
    matrices = [_of(list, matrix, "confusion") for matrix in _of(list, value, "confusion")]
    return tuple(
        tuple(tuple(_of(int, count, "confusion") for count in _of(list, row, "confusion")) for row in matrix)
        for matrix in matrices
    )


def _of(kind: type[Kind], value: object, key: str) -> Kind:
    """Check the kind of a JSON value; where a float is expected, whole numbers pass and null is NaN."""
    if kind is float and value is None:
        value = math.nan
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{key} should be of type {kind.__name__}, got {value!r}")
    return value


def _numbers(value: object, key: str) -> tuple[float, ...]:
    return tuple(_of(float, item, key) for item in _of(list, value, key))


def _keyed(
    kind: type[Kind], value: object, key: str, names: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Kind]:
    fields = _of(dict, value, key)
    present = (*names, *(name for name in optional if name in fields))
    return {name: _of(kind, fields[name], f"{key}.{name}") for name in present}
