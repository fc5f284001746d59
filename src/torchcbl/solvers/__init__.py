"""Solvers of s = G(s): `init` and `step`, nothing else; `iteration.py` runs them."""

from __future__ import annotations

from collections.abc import Mapping

from torchcbl.solvers.anderson import Anderson
from torchcbl.solvers.base import Evaluation, FunctionMap, Map, Solver
from torchcbl.solvers.broyden import Broyden
from torchcbl.solvers.iteration import Trace, iterate
from torchcbl.solvers.newton import Newton
from torchcbl.solvers.picard import Picard

SOLVERS: Mapping[str, type[Solver]] = {kind.name: kind for kind in (Picard, Anderson, Broyden, Newton)}

__all__ = [
    "SOLVERS",
    "Anderson",
    "Broyden",
    "Evaluation",
    "FunctionMap",
    "Map",
    "Newton",
    "Picard",
    "Solver",
    "Trace",
    "find_solver",
    "iterate",
]


def find_solver(solver: object) -> Solver:
    """Return a solver by its name, itself where it is one, and `Picard()` for None.

    Raises:
        ValueError: There is none of that name.
        TypeError: It is neither.
    """
    if solver is None:
        return Picard()
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str):
        if solver not in SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(map(repr, SOLVERS))} or a Solver, got {solver!r}.")
        return SOLVERS[solver]()
    given = f"the class {solver.__name__}: pass an object, {solver.__name__}()" if isinstance(solver, type) else solver
    raise TypeError(f"solver must be a name or a torchcbl.solvers.Solver, got {given}.")
