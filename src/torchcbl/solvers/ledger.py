"""What has become of each sample of a batch: written once, when it is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from torchcbl.refinement import Status


class _Entry(NamedTuple):
    """Samples that were done at the same step; `output` is None where it is kept elsewhere."""

    samples: Tensor
    value: Tensor
    point: Tensor
    output: Tensor | None
    status: Tensor
    steps: Tensor


@dataclass
class Ledger:
    """The samples that are done, and how far everyone moved at each step.

    Args:
        count: B, how many samples there are.
    """

    count: int
    entries: list[_Entry] = field(default_factory=list)
    notes: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def note(self, index: Tensor, residual: Tensor, length: Tensor) -> None:
        """Note the residuals and lengths (b,) of a step for some samples."""
        self.notes.append((index, residual, length))

    def close(
        self, index: Tensor, value: Tensor, point: Tensor, output: Tensor | None, status: Tensor, steps: int
    ) -> None:
        """Write down samples that are done."""
        self.entries.append(_Entry(index, value, point, output, status, torch.full_like(index, steps)))

    def settle(self, start: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return value, point, output, steps and status in the order of the batch; as they began if nothing ran."""
        if not self.entries:
            zeros = torch.zeros(self.count, dtype=torch.long, device=start.device)
            return start, start, output, zeros, torch.full_like(zeros, Status.max_steps)
        if len(self.entries) == 1:  # of everyone
            only = self.entries[0]
            return only.value, only.point, output if only.output is None else only.output, only.steps, only.status
        order = torch.cat([entry.samples for entry in self.entries]).argsort()

        def whole(parts: list[Tensor]) -> Tensor:
            return torch.cat(parts).index_select(0, order)

        outputs = [entry.output for entry in self.entries if entry.output is not None]
        return (
            whole([entry.value for entry in self.entries]),
            whole([entry.point for entry in self.entries]),
            whole(outputs) if outputs else output,
            whole([entry.steps for entry in self.entries]),
            whole([entry.status for entry in self.entries]),
        )

    def rows(self, taken: Tensor, steps: int, like: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Return residuals and lengths of each step, (B,) each; who is done repeats the last.

        Args:
            taken: How many steps each sample took, (B,).
            steps: How many rows there are to be.
            like: Their dtype and device.
        """
        if not self.notes:
            return [like.new_zeros(self.count)] * steps, [like.new_zeros(self.count)] * steps
        place = torch.cat([index + at * self.count for at, (index, _, _) in enumerate(self.notes)])
        last = (taken - 1).expand(len(self.notes), -1)
        at = torch.minimum(torch.arange(len(self.notes), device=last.device)[:, None], last)
        found = []
        for noted in (1, 2):
            flat = torch.cat([note[noted] for note in self.notes])
            table = flat.new_zeros(len(self.notes) * self.count).index_copy(0, place, flat)
            rows = list(table.reshape(len(self.notes), self.count).gather(0, at))
            found.append(rows + rows[-1:] * (steps - len(rows)))
        return found[0], found[1]
