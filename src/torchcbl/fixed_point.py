"""The fixed point of any function of tensors, with any solver, gradient rule and stopping rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from torchcbl.arguments import check_steps
from torchcbl.gradients import Bptt, Checkpointed, Gradient, Problem, find_gradient
from torchcbl.halting import Halting, Tolerance, check_halting
from torchcbl.solvers import FunctionMap, Solver, Trace, find_solver

_TIGHT = Tolerance(1e-6)


def fixed_point(
    function: Callable[..., Tensor],
    start: Tensor,
    args: Sequence[object] = (),
    *,
    solver: str | Solver = "anderson",
    gradient: str | Gradient = "implicit",
    halting: Halting | None = _TIGHT,
    steps: int = 100,
    compact: bool = True,
) -> Trace:
    """Find s* = f(s*, *args) for each sample of a batch.

    What `ContextLoop` does with its own map, for a map of your own.

    Args:
        function: f, called with s (B, ...) and with `args`; returns s's shape. It must keep its samples apart.
        start: s_0, (B, ...), floating point.
        args: Further arguments; the tensors among them have the batch first, since finished samples leave it. What f
            reads otherwise must not depend on the sample.
        solver: A name or a `torchcbl.solvers.Solver`.
        gradient: A name or a `torchcbl.gradients.Gradient`. Parameters that f reads get their gradients too.
        halting: A stopping rule; None takes all steps.
        steps: At most so many steps, at least 0.
        compact: Whether finished samples leave the batch; False where f cannot take fewer of them.

    Returns:
        `Trace`: `output` is the answer, (B, ...), with `residuals`, `steps`, `status` and `evaluations` per sample.
        `outputs` are those of all steps under "bptt" and "checkpointed", else the answer alone.

    Raises:
        ValueError: An option is out of its range, f returns another shape, a tensor of `args` has not the batch first,
            or the state is too large for the solver.
        TypeError: An option is of the wrong type.

    Example:
        >>> import torch
        >>> found = fixed_point(lambda s, x: torch.cos(s) + x, torch.zeros(2, 1), [torch.tensor([[0.0], [1.0]])])
        >>> found.output[:, 0]
        tensor([0.7391, 1.2834])
    """
    if not isinstance(start, Tensor) or start.ndim < 2 or not start.is_floating_point():
        got = f"{start.dtype} {tuple(start.shape)}" if isinstance(start, Tensor) else type(start).__name__
        raise ValueError(f"start must be a floating-point tensor (B, ...) of at least two axes, got {got}.")
    given: object = args
    if isinstance(given, Tensor):
        raise TypeError("args must be a sequence of arguments, got one tensor: pass [x] for f(s, x).")
    for position, value in enumerate(args):
        if isinstance(value, Tensor) and value.shape[:1] != start.shape[:1]:
            raise ValueError(
                f"args[{position}] has shape {tuple(value.shape)}, expected {len(start)} samples first, as start has: "
                "what all samples share is read by the function itself (a closure or functools.partial)."
            )
    g = FunctionMap(function, start.shape, args, start.dtype)
    vectors = start.flatten(1).to(torch.promote_types(start.dtype, torch.float32))
    rule = find_gradient(gradient)
    every = isinstance(rule, (Bptt, Checkpointed))  # whose outputs all have gradients
    problem = Problem(
        g, vectors, start, find_solver(solver), check_halting(halting), check_steps(steps), compact, every
    )
    return rule.run(problem)
