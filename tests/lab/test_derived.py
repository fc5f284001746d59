from torchcbl.lab.derived import read_at, with_derived
from torchcbl.lab.records import EpochRecord, Record, TestRecord
from torchcbl.lab.report import table


def record(arm: str = "cbl", seed: int = 0) -> Record:
    steps = 3 if arm == "cbl" else 1
    from torchcbl.lab.recipe import load_recipe

    return Record(
        schema=1,
        study="demo",
        arm=arm,
        seed=seed,
        recipe={**load_recipe("demo").as_dict(), "arms": ["standard", "cbl", "loop-free"]},
        versions={},
        machine={"device": "cpu"},
        parameters={"backbone": 100, "added": 5},
        flops={"first": 10.0, "step": 8.0, "inference": 26.0, "training": 70.0},
        epochs=(EpochRecord(1, 0.1, 2.0, (0.9, 0.8, 0.7)[:steps], (0.5, 0.6, 0.7)[:steps], 3.0),),
        test=TestRecord(4, (0.5, 0.4, 0.3)[:steps], (0.25, 0.5, 0.75)[:steps], (((1, 1), (2, 0)),) * steps),
        seconds={"training": 3.0, "total": 4.0},
        finished="2026-01-01T00:00:00+00:00",
        classes=("a", "b"),
    )


def test_a_derived_record_is_its_source_at_one_step() -> None:
    found = read_at(record(), "loop-free")
    assert (found.arm, found.seed, found.name) == ("loop-free", 0, "loop-free-seed0")
    assert (found.test.loss, found.test.accuracy) == ((0.5,), (0.25,))
    assert found.test.confusion == (((1, 1), (2, 0)),)
    assert found.epochs[0].validation_loss == (0.9,)
    assert found.flops == {"first": 10.0, "step": 0.0, "inference": 10.0, "training": 70.0}
    assert found.parameters == record().parameters


def test_they_are_added_where_they_are_asked_for_and_once() -> None:
    records = [record("standard"), record("cbl"), record("cbl", seed=1)]
    assert with_derived(records, ["standard", "cbl"]) == tuple(records)
    found = with_derived(records, ["standard", "cbl", "loop-free"])
    assert [one.name for one in found[3:]] == ["loop-free-seed0", "loop-free-seed1"]
    assert with_derived(found, ["standard", "cbl", "loop-free"]) == found


def test_a_report_shows_them_and_misses_none() -> None:
    text = table([record(arm, seed) for arm in ("standard", "cbl") for seed in range(3)])
    assert "loop-free" in text
    assert "missing" not in text.partition("Complete")[2]
    assert "Complete: all" in text or "Partial" in text
