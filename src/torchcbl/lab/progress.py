"""How a study shows how far it has come: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from torchcbl.lab.runs import Run, RunState

PREPARING_SECONDS = 5.0


@dataclass
class _Row:
    """One run at work."""

    run: Run
    started: float
    done_before: float = 0.0
    state: RunState | None = None

    def update(self, state: RunState) -> None:
        if self.state is None:  # a resumed run begins with the epochs that it has
            self.done_before = (state.epoch - 1) / self.run.recipe.epochs
        self.state = state

    @property
    def done(self) -> float:
        """Share of the run done in this sitting."""
        return self.state.done - self.done_before if self.state else 0.0

    def cells(self) -> tuple[str, str, str, str, str]:
        """Epoch, training loss, validation accuracy, speed and time left."""
        if self.state is None:
            return "starting", "", "", "", ""
        state = self.state
        accuracy = state.validation_accuracy
        left = (1 - state.done) * (time.monotonic() - self.started) / self.done if self.done > 0 else None
        return (
            f"{state.epoch}/{self.run.recipe.epochs}",
            f"{state.train_loss:.4f}",
            "" if accuracy is None else f"{100 * accuracy:.2f}%",
            f"{state.samples_per_second:,.0f} samples/s",
            duration(left),
        )


class Display:
    """Follow a study and print a line for each epoch and each finished run.

    Args:
        console: Where to print; standard output if none.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)
        self.rows: dict[str, _Row] = {}
        self.total = self.finished = self.finished_before = 0
        self.begun = time.monotonic()
        self._prepared = self.begun

    def __enter__(self) -> Display:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.rows.clear()

    def begin(self, total: int, finished: int) -> None:
        """Take the number of runs, and of those that are finished already."""
        self.total, self.finished, self.finished_before = total, finished, finished
        if finished:
            self.console.print(f"{finished} of {total} runs are finished already")

    def preparing(self, what: str, done: int, total: int | None, /) -> None:
        """Say now and then how far the data is."""
        if time.monotonic() - self._prepared < PREPARING_SECONDS and done != total:
            return
        self._prepared = time.monotonic()
        self.console.print(f"{what}: {done / total:.0%}" if total else f"{what}: {done:,}")

    def start(self, run: Run) -> None:
        """A run begins."""
        if not self.rows and self.finished == self.finished_before:
            self.begun = time.monotonic()
        self.rows[run.name] = _Row(run, time.monotonic())

    def update(self, run: Run, state: RunState) -> None:
        """A run has come further."""
        row = self.rows[run.name]
        row.update(state)
        if state.epoch_finished:
            self.epoch_finished(row)

    def note(self, text: str) -> None:
        """Say something in between."""
        self.console.print(text, markup=False)

    def finish(self, run: Run, problem: str | None) -> None:
        """A run has ended, well unless there is a problem."""
        row = self.rows.pop(run.name)
        self.finished += 1
        outcome = f"failed: {problem}" if problem else f"finished in {duration(time.monotonic() - row.started)}"
        self.console.print(f"[{self.finished}/{self.total}] {run.name} {outcome}", markup=False)

    def epoch_finished(self, row: _Row) -> None:
        """Print an epoch's numbers."""
        epoch, loss, accuracy, speed, left = row.cells()
        self.console.print(
            f"{row.run.name}: epoch {epoch}, training loss {loss}, validation accuracy {accuracy}, {speed}, "
            f"{left} left; all runs: {duration(self.seconds_left())} left",
            markup=False,
        )

    def seconds_left(self) -> float | None:
        """Estimate for all runs together, from what this sitting has done since its first run began."""
        rows = list(self.rows.values())
        done = self.finished - self.finished_before + sum(row.done for row in rows)
        left = self.total - self.finished - sum(row.state.done for row in rows if row.state)
        return left * (time.monotonic() - self.begun) / done if done > 0 else None


class LiveDisplay(Display):
    """Show a bar for the study and a row for each run at work, and print a line for each finished run."""

    def __init__(self, console: Console | None = None) -> None:
        super().__init__(console)
        self.preparation = "starting"
        self.live = Live(get_renderable=self.render, console=self.console, transient=True, refresh_per_second=4)

    def __enter__(self) -> LiveDisplay:
        self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()
        super().__exit__(kind, error, trace)

    def preparing(self, what: str, done: int, total: int | None, /) -> None:
        """Show how far the data is."""
        self.preparation = f"{what}: {done / total:.0%}" if total else f"{what}: {done:,}"

    def epoch_finished(self, row: _Row) -> None:
        """The table shows it."""

    def render(self) -> Group:
        """Draw the bar and the table."""
        return Group(self._bar(), self._table())

    def _bar(self) -> Table:
        rows = list(self.rows.values())
        done = self.finished + sum(row.state.done for row in rows if row.state)
        grid = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.total), completed=done, width=30)
        note = f"about {duration(self.seconds_left())} left" if rows else self.preparation
        grid.add_row(bar, f"{self.finished}/{self.total} runs", note if self.finished < self.total else "")
        return grid

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        for name in ("run", "epoch", "training loss", "validation accuracy", "speed", "time left"):
            table.add_column(name)
        for row in list(self.rows.values()):
            table.add_row(row.run.name, *row.cells())
        return table


def duration(seconds: float | None) -> str:
    """Write a time for people.

    Example:
        >>> duration(7.4), duration(125), duration(7500), duration(None)
        ('7 s', '2 min 05 s', '2 h 05 min', '?')
    """
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def make_display() -> Display:
    """Make the display that fits standard output."""
    return LiveDisplay() if sys.stdout.isatty() else Display()
