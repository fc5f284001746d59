"""The implicit function theorem's gradient at a fixed point."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from torchcbl.checks import check_above_zero, check_count
from torchcbl.gradients.base import Gradient, Problem, attach, without_gradients
from torchcbl.halting import Tolerance, rounding_floor
from torchcbl.refinement import Status, is_finite
from torchcbl.solvers import SOLVERS, FunctionMap, Solver, find_solver, iterate
from torchcbl.solvers.iteration import Trace

Adjoint = Callable[[Tensor], Tensor]
"""v -> u with u = v + J^T u, (B, N) each."""


@dataclass(frozen=True)
class Implicit(Gradient):
    """Differentiate the fixed point itself, however it was found.

        s* = G(s*, theta):   ds*/dtheta = (I - J)^{-1} dG/dtheta,   J = dG/ds at s*

    The adjoint u = v + J^T u is solved for each sample, exactly by its Jacobian where the state is small, else by a
    solver; where it has no solution, u = v is taken, with a warning. Memory is that of one step, whatever T. It is the
    gradient of the fixed point, so it is only as right as the answer is converged: see `Refinement.status`. The outputs
    before y_T have no gradient: give them no weight.

    Args:
        adjoint: "auto" (exact up to N = 32, else Anderson), "exact", or a solver by name or object.
        tolerance: Relative residual to which a solver takes the adjoint; no smaller than rounding allows, two units of
            the lowest precision among y and the hidden states: 1.6e-2 in bfloat16, under autocast too.
        steps: At most so many steps of that solver; a warning says when they were not enough.
        order: How often the answer may be differentiated. 1 for training; 2 (or more) for gradients of gradients, for
            one more evaluation each, exact adjoint only.

    Raises:
        ValueError: An option is out of its range, or `order` above 1 is asked of an adjoint that is not exact.

    Source:
        Bai et al. 2019, Deep Equilibrium Models, arXiv 1909.01377; Almeida 1987, Pineda 1987.

    Example:
        >>> Implicit(tolerance=1e-8)
        Implicit(adjoint='auto', tolerance=1e-08, steps=100, order=1)
    """

    adjoint: str | Solver = "auto"
    tolerance: float = 1e-6
    steps: int = 100
    order: int = 1
    name = "implicit"
    needs_one_map = True
    in_transforms = False

    def __post_init__(self) -> None:
        check_above_zero("Implicit", "tolerance", self.tolerance)
        check_count("Implicit", "steps", self.steps)
        check_count("Implicit", "order", self.order)
        if isinstance(self.adjoint, str) and self.adjoint not in ("auto", "exact", *SOLVERS):
            raise ValueError(
                f"Implicit's adjoint must be 'auto', 'exact', one of {', '.join(map(repr, SOLVERS))} or a Solver, got "
                f"{self.adjoint!r}."
            )
        if not isinstance(self.adjoint, (str, Solver)):
            raise TypeError(
                f"Implicit's adjoint must be 'auto', 'exact', a solver's name or an object of torchcbl.solvers, got "
                f"{self.adjoint!r}."
            )

    def differentiate(self, problem: Problem) -> Trace:
        """Iterate without gradients, then attach the theorem's gradient to the answer."""
        with without_gradients():
            trace = problem.iterate()
        size = problem.start.shape[1]
        exact = self.adjoint == "exact" or (self.adjoint == "auto" and size <= _EXACT_UP_TO)
        if self.order > 1 and not exact:
            raise ValueError(
                f"Implicit(order={self.order}) needs an exact adjoint, and a state of N = {size} has none by "
                f"adjoint={self.adjoint!r}: pass adjoint='exact', make the context smaller, or use gradient='bptt'."
            )
        s = trace.value.detach().requires_grad_()
        value, output, _ = problem.g(s, problem.steps)
        trace.evaluations = trace.evaluations + 1
        if not _depends_on_others(value, s):  # so that s* is the same for all parameters, and y may not be
            return attach(trace, problem.g, value.detach()) if _depends_on_others(output, s) else trace
        if self.order > 1:
            trace.evaluations = trace.evaluations + self.order
            return attach(trace, problem.g, self._by_chords(problem, s, value))
        tolerance = max(self.tolerance, rounding_floor(s.dtype, output.dtype, *problem.g.dtypes))
        solve = self._exact(value, s) if exact else self._by_solver(value, s, tolerance)
        answer: Tensor = _Attach.apply(value, solve)  # type: ignore[no-untyped-call]
        return attach(trace, problem.g, answer)

    def _by_chords(self, problem: Problem, s: Tensor, value: Tensor) -> Tensor:
        """Newton steps with the inverse held fixed; each one makes one more order of derivatives right."""
        eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
        inverse = torch.linalg.inv_ex(eye - _jacobian_rows(value, s))[0]
        failed = ~inverse.flatten(1).isfinite().all(dim=1) & is_finite(s)
        if bool(failed.any()):
            _warn(int(failed.sum()), len(s), "I - J is singular there")
            inverse = torch.where(failed[:, None, None], eye, inverse)
        point = s.detach()
        for _ in range(self.order):
            residual = problem.g(point, problem.steps).value - point
            point = point + (inverse * residual[:, None]).sum(dim=2)  # a matrix product would follow autocast
        return point

    def _exact(self, value: Tensor, s: Tensor) -> Adjoint:
        def solve(v: Tensor) -> Tensor:
            system = torch.eye(s.shape[1], dtype=s.dtype, device=s.device) - _jacobian_rows(value, s).mT
            u: Tensor = torch.linalg.solve_ex(system, v[:, :, None])[0][:, :, 0]
            failed = ~is_finite(u) & is_finite(v)
            if bool(failed.any()):
                _warn(int(failed.sum()), len(u), "I - J is singular there")
            return torch.where(failed[:, None], v, u)

        return solve

    def _by_solver(self, value: Tensor, s: Tensor, tolerance: float) -> Adjoint:
        solver = find_solver("anderson" if self.adjoint == "auto" else self.adjoint)

        def solve(v: Tensor) -> Tensor:
            g = FunctionMap(lambda u: v + _pull_back(value, s, u), v.shape)
            options = {"compact": False, "keep_outputs": False}
            trace = iterate(g, v, v, solver, Tolerance(tolerance), self.steps, **options)
            failed = (trace.status != Status.converged) & is_finite(v)
            if bool(failed.any()):
                worst = float(trace.residuals[-1][failed].max())
                _warn(int(failed.sum()), len(v), f"its relative residual is up to {worst:.1e} after {self.steps} steps")
            lost = failed & ((trace.status == Status.diverged) | (trace.status == Status.non_finite))
            return torch.where(lost[:, None], v, trace.value)

        return solve


_EXACT_UP_TO = 32


class _Attach(torch.autograd.Function):
    """G(s*) with the adjoint of the fixed point in its backward pass."""

    @staticmethod
    def forward(ctx, value: Tensor, solve: Adjoint) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.solve = solve
        ctx.save_for_backward(value)
        return value.view_as(value)

    @staticmethod
    def backward(ctx, v: Tensor) -> tuple[Tensor, None]:  # type: ignore[no-untyped-def]
        with torch.no_grad():
            u = ctx.solve(v.detach())
        if torch.is_grad_enabled():
            once: Tensor = _Once.apply(u, v, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
            return once, None
        return u, None


class _Once(torch.autograd.Function):
    """u, which cannot be differentiated again: neither by v nor by what the value depends on."""

    @staticmethod
    def forward(ctx, u: Tensor, v: Tensor, value: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return u.view_as(u)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[None, Tensor, Tensor]:  # type: ignore[no-untyped-def]
        raise NotImplementedError(
            "gradient='implicit' was differentiated twice, but its adjoint is solved without a graph: pass "
            "gradient=torchcbl.gradients.Implicit(adjoint='exact', order=2), or gradient='bptt'."
        )


def _depends_on_others(value: Tensor, s: Tensor) -> bool:
    """Say whether a value has a gradient by anything but s, a leaf."""
    queue = [value.grad_fn]
    seen = set(queue)
    while queue:
        node = queue.pop()
        if node is None:
            continue
        leaf = getattr(node, "variable", None)
        if leaf is not None and leaf is not s:
            return True
        new = {parent for parent, _ in node.next_functions} - seen
        seen |= new
        queue += new
    return False


def _pull_back(value: Tensor, s: Tensor, u: Tensor) -> Tensor:
    """Return J^T u."""
    if not value.requires_grad:
        return torch.zeros_like(s)
    (pulled,) = torch.autograd.grad(value, s, u, retain_graph=True, allow_unused=True)
    return torch.zeros_like(s) if pulled is None else pulled


def _jacobian_rows(value: Tensor, s: Tensor) -> Tensor:
    """Return J, (B, N, N), by reverse mode along a graph that is there already: in one batch where torch can."""
    basis = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)[:, None].expand(-1, *s.shape)
    if not value.requires_grad or not s.numel():
        return s.new_zeros(*s.shape, s.shape[1])
    try:
        (rows,) = torch.autograd.grad(value, s, basis, retain_graph=True, allow_unused=True, is_grads_batched=True)
    except (RuntimeError, NotImplementedError):  # torch has no batching rule for some part of G
        rows = torch.stack([_pull_back(value, s, row) for row in basis])
    return s.new_zeros(*s.shape, s.shape[1]) if rows is None else rows.movedim(0, 1)


def _warn(failed: int, count: int, why: str) -> None:
    warnings.warn(
        f"the adjoint system of gradient='implicit' was not solved for {failed} of {count} samples ({why}), so their "
        "gradients are inexact: raise Implicit(steps=...), use adjoint='exact' or another solver, or make the loop "
        "contract (torchcbl.contraction measures it).",
        RuntimeWarning,
        stacklevel=2,
    )
