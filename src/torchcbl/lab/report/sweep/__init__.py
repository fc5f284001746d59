"""The page of a sweep: what was chosen and why, what moves the score, every setting with its spread and cost."""

from torchcbl.lab.report.sweep.page import Written, write_sweep

__all__ = ["Written", "write_sweep"]
