"""Cutting a backbone into prefix, stages and head, so that a refinement computes the prefix once.

Two cutters serve one interface. `TracedCut` follows the model with torch.fx and runs each stage as a graph of its own.
`ReplayedCut` is for what torch.fx cannot follow: it calls the backbone's own forward again, and whatever finished
before the lowest site gives back what it returned the first time. Schedules see `Cut` and tensors, never modules.
"""

from torchcbl.stages.base import Cut, FirstPass, Plan, Visit
from torchcbl.stages.choose import CutMode, choose_plan, make_cut

__all__ = ["Cut", "CutMode", "FirstPass", "Plan", "Visit", "choose_plan", "make_cut"]
