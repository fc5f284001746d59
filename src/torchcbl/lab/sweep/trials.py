"""One run of a sweep: trained and validated, never tested."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torchcbl.files import write_atomically
from torchcbl.lab.codec import as_json
from torchcbl.lab.ranks import Rank
from torchcbl.lab.recipe import differences
from torchcbl.lab.records import TrialRecord, read_trial, run_name
from torchcbl.lab.runs import Run, RunState
from torchcbl.lab.sweep.grid import Setting


@dataclass(frozen=True)
class Trial(Run):
    """Name a run of a sweep and find its files; its `recipe` has the setting's values.

    Args:
        setting: What it tries.

    Example:
        >>> from torchcbl.lab.recipe import load_recipe
        >>> Trial(load_recipe("demo"), "cbl", 1000, Path("out"), setting=Setting((("steps", 1),))).name
        'cbl,steps=1-seed1000'
    """

    setting: Setting = field(default_factory=Setting)

    @property
    def name(self) -> str:
        """`<arm>,<key>=<value>,...-seed<seed>`."""
        return run_name(",".join(filter(None, (self.arm, self.setting.label))), self.seed)

    @property
    def record(self) -> Path:
        """The record, there once the run is finished; no study looks for one here."""
        return self.out / "trials" / f"{self.name}.json"

    def train(self, report: Callable[[RunState], None], rank: Rank) -> None:
        """Train it to its end without a look at the test data, and leave its record."""
        from torchcbl.lab.training import train_untested

        record = train_untested(self, report, rank)
        if rank.leads:
            write_atomically(self.record, as_json(record))
            self.checkpoint.unlink(missing_ok=True)

    def read(self) -> TrialRecord | None:
        """Read the record; None where the run is not finished.

        Raises:
            ValueError: It is damaged, holds a test result, or is of another run.
        """
        if not self.record.is_file():
            return None
        found = read_trial(self.record)
        differing = differences(found.recipe, self.recipe)
        if (found.arm, found.seed) != (self.arm, self.seed):
            differing.append(f"the run is {found.name} there, {run_name(self.arm, self.seed)} here")
        if differing:
            raise ValueError(
                f"record {self.record} is of another run: {'; '.join(differing)}. Delete the file and run the same "
                "`torchcbl sweep` again: only this run is repeated."
            )
        return found
