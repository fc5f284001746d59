"""Rows of numbers that a solver keeps of each sample, the newest last."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcbl.transforms import in_transform


def append(rows: Tensor, row: Tensor, limit: int) -> Tensor:
    """Return rows (B, k, N) with one more, (B, N), at the end and at most `limit` in all: the oldest goes.

    Without gradients the new row is written behind the old ones, into room that was left there, and `rows` must not
    be used any more. With gradients, all is copied: a graph keeps what it has seen. So is it within transforms of
    torch.func, whose tensors have no storage.
    """
    if torch.is_grad_enabled() or in_transform():
        return torch.cat([rows, row[:, None]], dim=1)[:, -limit:]
    batch, count, size = rows.shape
    dropped = int(count == limit)
    if rows.storage_offset() + count * size >= _room(rows) * size:
        roomy = rows.new_empty(batch, min(2 * count + 4, limit + limit // 2 + 1), size)
        roomy[:, : count - dropped] = rows[:, dropped:]
        grown = roomy[:, : count - dropped + 1]
    else:
        shape = (batch, count - dropped + 1, size)
        grown = rows.as_strided(shape, rows.stride(), rows.storage_offset() + dropped * size)
    grown[:, -1] = row
    return grown


def _room(rows: Tensor) -> int:
    """Return for how many rows per sample there is room in what `append` or `torch` allocated."""
    per_row = len(rows) * rows.shape[2] * rows.element_size()
    return rows.untyped_storage().nbytes() // max(1, per_row)
