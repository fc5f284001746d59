"""Records of arms that are not trained: another arm's records, read at one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torchcbl.lab.recipe import DERIVED_ARMS
from torchcbl.lab.records import EpochRecord, Record, TestRecord


def with_derived(records: Sequence[Record], arms: Sequence[str]) -> tuple[Record, ...]:
    """Add the records of the derived ones among some arms.

    Args:
        records: Of arms that were trained.
        arms: All arms that are asked for.

    Returns:
        The records as they were, and one more for each record that a derived arm is read off.
    """
    present = {record.arm for record in records}
    wanted = [arm for arm in arms if arm in DERIVED_ARMS and arm not in present]
    added = [read_at(record, arm) for arm in wanted for record in records if record.arm == DERIVED_ARMS[arm][0]]
    return (*records, *added)


def read_at(record: Record, arm: str) -> Record:
    """Read a record at the step of a derived arm: what the run would have answered had it stopped there.

    Its cost in training stays, since that is how the weights were come by; its cost of inference is that of the steps
    it takes.
    """
    _, step = DERIVED_ARMS[arm]
    flops = {**record.flops, "step": 0.0, "inference": record.flops["first"] + step * record.flops["step"]}
    return replace(
        record,
        arm=arm,
        flops=flops,
        epochs=tuple(_epoch_at(epoch, step) for epoch in record.epochs),
        test=_test_at(record.test, step),
    )


def _epoch_at(epoch: EpochRecord, step: int) -> EpochRecord:
    return replace(
        epoch,
        validation_loss=epoch.validation_loss[step : step + 1],
        validation_accuracy=epoch.validation_accuracy[step : step + 1],
    )


def _test_at(test: TestRecord, step: int) -> TestRecord:
    confusion = None if test.confusion is None else test.confusion[step : step + 1]
    return replace(test, loss=test.loss[step : step + 1], accuracy=test.accuracy[step : step + 1], confusion=confusion)
