import dataclasses
import json
import math
from pathlib import Path

import pytest

from torchcbl.lab.records import (
    EpochRecord,
    Record,
    TestRecord,
    read_record,
    read_records,
    record_path,
    write_record,
)


def make_record(arm: str = "cbl", seed: int = 0) -> Record:
    return Record(
        schema=1,
        study="demo",
        arm=arm,
        seed=seed,
        recipe={"name": "demo", "arms": ["standard", "cbl"], "steps": 2},
        versions={"torch": "2.13.0"},
        machine={"system": "Linux", "processor": "x86_64", "cores": 2, "threads": 1, "device": "cpu"},
        parameters={"backbone": 100, "added": 7},
        flops={"first": 10.0, "step": 8.0, "inference": 26.0},
        epochs=(EpochRecord(1, 1e-3, 2.25, (2.0, 1.5, 1.25), (0.5, 0.5, 0.75), 3.0),),
        test=TestRecord(4, (1.0, 1.0, 0.5), (0.25, 0.5, 1.0)),
        seconds={"training": 3.0, "total": 4.0},
        finished="2025-01-01T00:00:00+00:00",
    )


def test_a_record_reads_back_equal_and_its_keys_are_the_attributes(tmp_path: Path) -> None:
    record = make_record()
    path = write_record(tmp_path, record)
    assert path == tmp_path / "records" / "cbl-seed0.json"
    assert read_record(path) == record
    assert list(json.loads(path.read_text())) == [field.name for field in dataclasses.fields(Record)]


def test_non_finite_losses_are_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    record = dataclasses.replace(make_record(), test=TestRecord(4, (math.inf, math.nan), (0.1, 0.1)))
    path = write_record(tmp_path, record)
    assert json.loads(path.read_text())["test"]["loss"] == [None, None]
    assert all(math.isnan(value) for value in read_record(path).test.loss)


def test_records_come_ordered_by_arm_and_seed(tmp_path: Path) -> None:
    for arm, seed in [("standard", 0), ("cbl", 10), ("cbl", 2)]:
        write_record(tmp_path, make_record(arm, seed))
    assert [record.name for record in read_records(tmp_path)] == ["cbl-seed2", "cbl-seed10", "standard-seed0"]


def test_a_folder_without_records_gives_none(tmp_path: Path) -> None:
    assert read_records(tmp_path) == []


def damaged(tmp_path: Path, change: str, value: object) -> Path:
    path = write_record(tmp_path, make_record())
    data = json.loads(path.read_text())
    if value is None:
        del data[change]
    else:
        data[change] = value
    path.write_text(json.dumps(data))
    return path


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("arm", None, r"the file lacks \['arm'\]"),
        ("seed", "zero", "seed should be of type int, got 'zero'"),
        ("seed", True, "seed should be of type int, got True"),
        ("epochs", [3], "epochs should be of type dict, got 3"),
        ("parameters", {"backbone": 3}, r"parameters lacks \['added'\]"),
        ("test", {"n": 3, "loss": [1.0], "accuracy": []}, "1 losses and 0 accuracies"),
        ("test", {"n": 3, "loss": [1.0], "accuracy": [7.5]}, r"fractions in \[0, 1\], got \[7.5\]"),
    ],
)
def test_a_damaged_record_is_named_with_the_reason(tmp_path: Path, key: str, value: object, reason: str) -> None:
    path = damaged(tmp_path, key, value)
    with pytest.raises(ValueError, match=reason) as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "Delete the file" in str(caught.value)


def test_a_record_of_another_version_is_not_to_be_deleted(tmp_path: Path) -> None:
    path = damaged(tmp_path, "schema", 99)
    path.write_text(json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "arm"}))
    with pytest.raises(ValueError, match="another version of torchcbl: it has schema 99, this .* schema 1") as caught:
        read_record(path)
    assert str(path) in str(caught.value)
    assert "elete" not in str(caught.value)


def test_a_cut_off_record_is_damaged(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is damaged"):
        read_records(tmp_path)


def test_binary_rubbish_is_a_damaged_record(tmp_path: Path) -> None:
    path = record_path(tmp_path, "cbl", 0)
    path.parent.mkdir()
    path.write_bytes(b"\xff\xfe\x00rubbish")
    with pytest.raises(ValueError, match="is damaged"):
        read_record(path)


def test_a_record_under_another_name_is_refused(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record())
    path.rename(path.with_name("cbl-seed1.json"))
    with pytest.raises(ValueError, match=r"cbl-seed1\.json says it is of cbl-seed0: it was renamed or edited"):
        read_records(tmp_path)
