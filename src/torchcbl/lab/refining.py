"""What all models with steps have in common, a loop or not."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor

import torchcbl as cbl


@runtime_checkable
class Refining(Protocol):
    """A model that answers at every step, as `ContextLoop` does."""

    def refine(self, x: Tensor, *, steps: int | None = None) -> cbl.Refinement:
        """Compute y_0..y_T for samples (B, C, H, W)."""
