import io
from pathlib import Path

from rich.console import Console

from torchcbl.lab.progress import Display, LiveDisplay
from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.runs import Run, RunState

RUN = Run(load_recipe("demo", {"epochs": "4"}), "cbl", 0, Path("out"))


def state(epoch: int, done: float, finished: bool) -> RunState:
    return RunState(epoch, done, 1234.5, 0.25, 0.9 if epoch > 1 or finished else None, finished)


def console() -> Console:
    return Console(file=io.StringIO(), width=120, highlight=False)


def text(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def test_plain_lines_say_each_epoch_once() -> None:
    target = console()
    with Display(target) as display:
        display.begin(total=3, finished=1)
        display.start(RUN)
        display.update(RUN, state(1, 0.125, finished=False))
        display.update(RUN, state(1, 0.25, finished=True))
        display.finish(RUN, None)
    lines = text(target).splitlines()
    assert lines[0] == "1 of 3 runs are finished already"
    assert "cbl-seed0: epoch 1/4, training loss 0.2500, validation accuracy 90.00%, 1,234 samples/s" in lines[1]
    assert lines[-1].startswith("[2/3] cbl-seed0 finished in")


def test_a_failure_is_printed_with_its_reason() -> None:
    target = console()
    with Display(target) as display:
        display.begin(total=1, finished=0)
        display.start(RUN)
        display.finish(RUN, "ValueError: [bold] is not markup")
    assert "[1/1] cbl-seed0 failed: ValueError: [bold] is not markup" in text(target)


def test_time_left_counts_only_what_this_sitting_did() -> None:
    display = Display(console())
    display.begin(total=2, finished=0)
    display.start(RUN)
    assert display.seconds_left() is None
    display.update(RUN, state(3, 0.75, finished=True))  # resumed after two of four epochs
    row = display.rows[RUN.name]
    row.started = display.begun = row.started - 10.0
    assert 9.9 < (1 - 0.75) * 10 / row.done < 10.1
    assert row.cells()[-1] == "10 s"
    left = display.seconds_left()
    assert left is not None
    assert 49.9 < left < 50.5  # a quarter of a run took 10 s, five quarters remain


def test_the_live_table_has_a_row_for_each_run_at_work() -> None:
    target = console()
    display = LiveDisplay(target)
    display.begin(total=2, finished=0)
    display.preparing("decoding", 5, 10)
    target.print(display.render())
    assert "decoding: 50%" in text(target)
    display.start(RUN)
    display.update(RUN, state(2, 0.4, finished=False))
    target.print(display.render())
    assert "0/2 runs" in text(target)
    row = text(target).splitlines()[-1].split()
    assert row[:5] == ["cbl-seed0", "2/4", "0.2500", "90.00%", "1,234"]


def test_preparation_is_said_when_it_is_done() -> None:
    target = console()
    display = Display(target)
    display.preparing("decoding train", 1, 10)
    display.preparing("decoding train", 10, 10)
    assert text(target) == "decoding train: 100%\n"
