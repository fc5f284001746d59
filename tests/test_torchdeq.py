"""Against torchdeq 0.1.0 (Geng and Kolter 2023) on the same maps: the same fixed points, gradients and biases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from problems import Known, cosine, random, rotation, symmetric, tanh_network
from torchcbl.fixed_point import fixed_point
from torchcbl.gradients import Gradient, Implicit, Phantom
from torchcbl.halting import Never, Tolerance
from torchcbl.solvers import Anderson, Broyden, Picard, Solver

torchdeq = pytest.importorskip("torchdeq")

SOLVERS: dict[str, tuple[Solver, str]] = {
    "picard": (Picard(), "fixed_point_iter"),
    "anderson": (Anderson(6), "anderson"),
    "broyden": (Broyden(), "broyden"),
}
BUILDS = [tanh_network, symmetric, cosine]


def theirs(
    known: Known, theta: list[Tensor], train: bool = True, **options: object
) -> tuple[Tensor, dict[str, Tensor]]:
    settings: dict[str, object] = {
        "f_solver": "fixed_point_iter", "b_solver": "fixed_point_iter", "f_max_iter": 300, "b_max_iter": 300,
        "f_tol": 1e-12, "b_tol": 1e-12, "f_stop_mode": "rel", "b_stop_mode": "rel", "ift": True, **options,
    }  # fmt: skip
    deq = torchdeq.get_deq(**settings)
    outputs, info = deq.train(train)(lambda s: known.f(s, *theta), known.start)
    return outputs[-1], info


def ours(known: Known, theta: list[Tensor], solver: Solver, gradient: Gradient) -> Tensor:
    halting, start = Tolerance(1e-12), known.start
    return fixed_point(known.f, start, theta, solver=solver, gradient=gradient, halting=halting, steps=300).output


def compare(one: Tensor, other: Tensor, theta: list[Tensor], error: float) -> None:
    torch.testing.assert_close(one, other, rtol=error, atol=error)
    weights = random(*one.shape, seed=5)
    for a, b in zip(*(torch.autograd.grad((weights * y.sin()).sum(), theta) for y in (one, other)), strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("rule", [Implicit(), Implicit("anderson", 1e-12)], ids=repr)
def test_same_fixed_points_and_implicit_gradients(build: object, name: str, rule: Gradient) -> None:
    known = build()  # type: ignore[operator]
    theta, (solver, their_name) = known.leaves(), SOLVERS[name]
    other, _ = theirs(known, theta, f_solver=their_name)
    compare(ours(known, theta, solver, rule), other, theta, 1e-7)


@pytest.mark.parametrize("build", [tanh_network, symmetric])
@pytest.mark.parametrize(("steps", "damping"), [(1, 0.0), (3, 0.0), (3, 0.4), (8, 0.5)])
def test_same_phantom_gradients(build: object, steps: int, damping: float) -> None:
    known = build()  # type: ignore[operator]
    theta = known.leaves()
    other, _ = theirs(known, theta, ift=False, grad=steps, tau=1 - damping)
    compare(ours(known, theta, Picard(), Phantom(steps, damping)), other, theta, 1e-9)


def test_same_damped_iterates_and_relative_residuals() -> None:
    known = rotation()
    for steps in (1, 4, 9):
        trace = fixed_point(known.f, known.start, known.theta, solver=Picard(0.5), halting=Never(), steps=steps)
        solve = torchdeq.get_solver("fixed_point_iter")
        with torch.no_grad():
            next_iterate, _, _ = solve(lambda s: known.f(s, *known.theta), known.start, max_iter=steps, tau=0.5,
                                       return_final=True)  # fmt: skip
        torch.testing.assert_close(0.5 * trace.point + 0.5 * trace.value, next_iterate, rtol=1e-12, atol=1e-12)
    known = symmetric()
    _, info = theirs(known, list(known.theta), train=False, f_max_iter=9)
    trace = fixed_point(known.f, known.start, known.theta, solver="picard", halting=Never(), steps=9, gradient="bptt")
    torch.testing.assert_close(torch.stack(trace.residuals).T, info["rel_trace"][:, 1:].double(), rtol=1e-5, atol=1e-8)


def test_theirs_stops_by_the_slowest_of_the_batch_and_ours_by_sample() -> None:
    known = symmetric((0.1, 0.1, 0.9))
    trace = fixed_point(known.f, known.start, known.theta, solver="picard", halting=Tolerance(1e-8), steps=300)
    assert trace.steps[2] > 5 * trace.steps[0]
    _, info = theirs(known, list(known.theta), train=False, f_tol=1e-8)
    assert int((info["rel_trace"][0] > 0).sum()) > int(trace.steps[0])
    torch.testing.assert_close(trace.output, known.answer(), rtol=0, atol=1e-6)
