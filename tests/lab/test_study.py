import dataclasses
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from rich.console import Console

from torchcbl.lab.engines import local
from torchcbl.lab.engines.base import Plan
from torchcbl.lab.engines.local import LocalEngine
from torchcbl.lab.machine import describe_machine, num_cores, versions
from torchcbl.lab.progress import Display
from torchcbl.lab.ranks import Spread
from torchcbl.lab.recipe import Recipe, load_recipe, read_recipe
from torchcbl.lab.records import Record, read_record, read_records
from torchcbl.lab.runs import Run, begun
from torchcbl.lab.study import claim, locked, prepare, run_study
from torchcbl.lab.training import train

TINY = {"width": "4", "epochs": "1", "batch_size": "100", "validation_size": "100"}


def tiny(**changes: str) -> Recipe:
    return load_recipe("demo", {**TINY, "seeds": "1", "arms": '["standard", "cbl"]', **changes})


def quiet() -> tuple[Display, io.StringIO]:
    stream = io.StringIO()
    return Display(Console(file=stream, highlight=False, soft_wrap=True)), stream


def numbers(record: Record) -> Record:
    epochs = tuple(dataclasses.replace(epoch, seconds=0.0) for epoch in record.epochs)
    return dataclasses.replace(record, epochs=epochs, seconds={}, finished="")


def test_a_study_runs_everything_once_and_can_be_extended(tmp_path: Path) -> None:
    display, stream = quiet()
    assert run_study(tiny(), tmp_path, display, jobs=2) == []
    assert [record.name for record in read_records(tmp_path)] == ["cbl-seed0", "standard-seed0"]
    assert "cbl-seed0: epoch 1/1, training loss" in stream.getvalue()
    assert "[2/2]" in stream.getvalue()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}

    display, stream = quiet()
    assert run_study(tiny(seeds="2", arms='["standard"]'), tmp_path, display, jobs=1) == []
    assert "1 of 2 runs are finished already" in stream.getvalue()
    assert all(path.stat().st_mtime_ns == then for path, then in before.items())
    merged = read_recipe(tmp_path / "recipe.toml")
    assert (merged.arms, merged.seeds) == (("standard", "cbl"), 2)
    assert len(read_records(tmp_path)) == 3


def test_a_failing_run_does_not_take_the_others_down(tmp_path: Path) -> None:
    (tmp_path / "runs" / "cbl-seed0").mkdir(parents=True)
    (tmp_path / "runs" / "cbl-seed0" / "model").write_text("in the way")
    display, stream = quiet()
    failures = run_study(tiny(), tmp_path, display, jobs=2)
    assert [(failure.run.name, "model" in failure.reason) for failure in failures] == [("cbl-seed0", True)]
    assert "Traceback" in failures[0].run.log.read_text()
    assert [record.name for record in read_records(tmp_path)] == ["standard-seed0"]
    assert "cbl-seed0 failed" in stream.getvalue()


def test_a_folder_that_holds_another_study_names_what_differs(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(tiny(seeds="7").as_toml())
    begun = tmp_path / "runs" / "cbl-seed0" / "checkpoint.ckpt"
    begun.parent.mkdir(parents=True)
    begun.touch()
    with pytest.raises(ValueError, match=r"another study: epochs is 1 there, 2 here; alpha is 0.0 there, 0.5 here"):
        claim(tiny(epochs="2", alpha="0.5"), tmp_path)
    assert claim(tiny(), tmp_path) == tiny(seeds="7")


def test_a_study_that_did_not_begin_leaves_the_folder_free(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold out 1400"):
        run_study(tiny(validation_size="1400"), tmp_path, quiet()[0])
    assert not (tmp_path / "recipe.toml").exists()
    (tmp_path / "recipe.toml").write_text(tiny(seeds="50").as_toml())  # a slip, stopped before an epoch was over
    assert claim(tiny(epochs="2"), tmp_path) == tiny(epochs="2")


def test_nothing_of_the_user_s_own_is_written_over(tmp_path: Path) -> None:
    for text in ("# why these values\n" + tiny().as_toml(), "title = 'another tool'\n", "no TOML"):
        (tmp_path / "recipe.toml").write_text(text)
        with pytest.raises(ValueError, match=r"recipe\.toml was not written by this command, .* choose another --out"):
            run_study(tiny(), tmp_path, quiet()[0])
        assert (tmp_path / "recipe.toml").read_text() == text
    (tmp_path / "recipe.toml").unlink()
    for text in ('{"my": "data"}', "[1]", "{"):
        (tmp_path / "data.json").write_text(text)
        with pytest.raises(ValueError, match=r"data\.json is none of torchcbl's, .* choose another --out"):
            run_study(tiny(), tmp_path, quiet()[0])
        assert (tmp_path / "data.json").read_text() == text


def test_what_macos_leaves_on_foreign_disks_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "._cbl-seed0.json").write_bytes(b"\x00\x05\x16\x07")
    assert read_records(tmp_path) == []
    assert not begun(tmp_path)


def test_without_windows_missing_contexts_the_study_is_imported() -> None:
    code = """
import multiprocessing.context as context
for name in ("ForkServerContext", "ForkServerProcess", "ForkContext", "ForkProcess"):
    delattr(context, name)
import torchcbl.lab.study
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_process_that_cannot_be_started_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise EOFError

    monkeypatch.setattr(local, "Team", refuse)
    with pytest.raises(ChildProcessError, match=r"no process could be started for standard-seed0 \(EOFError\).*--jobs"):
        run_study(tiny(), tmp_path, quiet()[0], jobs=2)


def test_a_damaged_record_stops_the_study(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "cbl-seed0.json").write_text("{")
    with pytest.raises(ValueError, match=r"cbl-seed0\.json is damaged"):
        run_study(tiny(), tmp_path, quiet()[0])


def test_a_fault_of_the_data_shows_before_any_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot hold out 1400"):
        run_study(tiny(validation_size="1400"), tmp_path, quiet()[0])
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("batch_size", "spread", "said"),
    [("99", Spread(), "2 samples in a batch, but the last batch of the 100 validation samples has 1"),
     ("97", Spread(devices=2), "2 samples in a batch in each of 2 processes, but .* 100 validation samples has 3")],
)  # fmt: skip
def test_a_batch_too_small_for_an_arm_shows_before_any_run(
    tmp_path: Path, batch_size: str, spread: Spread, said: str
) -> None:
    recipe = tiny(batch_size=batch_size, arms='["standard", "shuffled-context"]')
    with pytest.raises(ValueError, match=f"shuffled-context needs {said}: choose another batch_size than {batch_size}"):
        run_study(recipe, tmp_path, quiet()[0], engine=LocalEngine(Plan(1, spread=spread)))
    assert not (tmp_path / "runs").exists()
    prepare(tiny(batch_size=batch_size), None, quiet()[0], spread)


def test_an_arm_that_would_be_another_shows_before_any_run(tmp_path: Path) -> None:
    recipe = tiny(arms='["standard", "cbl", "frozen-context"]', steps="1")
    with pytest.raises(ValueError, match=r"frozen-context needs steps of at least 2, got 1: .* Leave the arm out"):
        run_study(recipe, tmp_path, quiet()[0])
    assert not (tmp_path / "recipe.toml").exists()


def test_two_studies_cannot_work_in_one_folder(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BlockingIOError, match="another torchcbl is at work in"):
        run_study(tiny(), tmp_path, quiet()[0])
    with locked(tmp_path):
        pass


def test_jobs_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="jobs must be >= 1, got 0"):
        run_study(tiny(), tmp_path, quiet()[0], jobs=0)


def test_killed_and_stopped_the_same_command_ends_with_the_same_numbers(tmp_path: Path) -> None:
    """SIGKILL in the middle of epoch 2, Ctrl-C in the middle of a later one, then to the end."""
    settings = ["--seeds=1", "--arms=cbl", "--epochs=6", "--set=batch_size=16", "--set=width=4", "--jobs=2"]
    command = [sys.executable, "-m", "torchcbl", "compare", "demo", *settings, f"--out={tmp_path / 'broken'}"]
    checkpoint = tmp_path / "broken" / "runs" / "cbl-seed0" / "checkpoint.ckpt"

    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    wait_for_change(checkpoint, None)
    first.kill()
    assert first.wait() == -signal.SIGKILL

    then = checkpoint.stat().st_mtime_ns
    second = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for_change(checkpoint, then)
    os.killpg(second.pid, signal.SIGINT)
    output, errors = second.communicate(timeout=20)
    assert second.returncode == 130
    assert "The same command goes on" in errors
    assert "Traceback" not in errors
    assert "epoch 1/6" not in output
    assert not (tmp_path / "broken" / "records" / "cbl-seed0.json").exists()

    third = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "epoch 2/6" not in third.stdout
    assert "report: " in third.stdout
    broken = read_record(tmp_path / "broken" / "records" / "cbl-seed0.json")
    whole = Run(read_recipe(tmp_path / "broken" / "recipe.toml"), "cbl", 0, tmp_path / "whole")
    assert numbers(broken) == numbers(train_with_threads(whole, max(1, num_cores() // 2)))
    for name in ("adapters.safetensors", "backbone.safetensors"):
        models = [tmp_path / n / "runs" / "cbl-seed0" / "model" / name for n in ("broken", "whole")]
        assert models[0].read_bytes() == models[1].read_bytes()


def train_with_threads(run: Run, threads: int) -> Record:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return train(run)
    finally:
        torch.set_num_threads(before)


def wait_for_change(path: Path, then: int | None) -> None:
    """Wait until a file has been written anew, and a moment longer."""
    deadline = time.monotonic() + 300  # a busy machine starts processes slowly
    while not path.exists() or path.stat().st_mtime_ns == then:
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    time.sleep(0.3)


def test_the_machine_is_described() -> None:
    machine = describe_machine(threads=3, device="cpu")
    assert (machine["threads"], machine["device"], machine["cores"]) == (3, "cpu", num_cores())
    assert machine["system"]
    assert machine["processor"]
    assert versions()["torchcbl"] == "0.1.0"
