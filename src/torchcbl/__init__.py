"""Top-down feedback for any PyTorch network (Contextual Backpropagation Loops, Fein-Ashley).

The names below load on first use, so `import torchcbl` costs nothing beyond torch itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchcbl.adapters import Adapter
    from torchcbl.audit import Audit
    from torchcbl.backbone.site import Site, sites
    from torchcbl.context import Context
    from torchcbl.halting import Agreement, Confidence, Tolerance
    from torchcbl.loop import ContextLoop
    from torchcbl.loss import refinement_loss
    from torchcbl.refinement import Refinement, Status
    from torchcbl.sharing.storage import load
    from torchcbl.theory.contraction import contraction
    from torchcbl.theory.contractive import make_contractive

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Agreement",
    "Audit",
    "Confidence",
    "Context",
    "ContextLoop",
    "Refinement",
    "Site",
    "Status",
    "Tolerance",
    "contraction",
    "load",
    "make_contractive",
    "refinement_loss",
    "sites",
]

_HOMES = {
    "Adapter": "torchcbl.adapters",
    "Agreement": "torchcbl.halting",
    "Audit": "torchcbl.audit",
    "Confidence": "torchcbl.halting",
    "Context": "torchcbl.context",
    "ContextLoop": "torchcbl.loop",
    "Refinement": "torchcbl.refinement",
    "Site": "torchcbl.backbone.site",
    "Status": "torchcbl.refinement",
    "Tolerance": "torchcbl.halting",
    "contraction": "torchcbl.theory.contraction",
    "load": "torchcbl.sharing.storage",
    "make_contractive": "torchcbl.theory.contractive",
    "refinement_loss": "torchcbl.loss",
    "sites": "torchcbl.backbone.site",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'torchcbl' has no attribute '{name}'; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
