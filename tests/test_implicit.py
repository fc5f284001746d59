"""The implicit gradient: exact for every problem with a closed form, and clear about what it cannot do."""

from __future__ import annotations

import pytest
import torch

from problems import PROBLEMS, Known, affine, gradients, picard, random, run, symmetric, tanh_network, weights
from torchcbl.fixed_point import fixed_point
from torchcbl.gradients import Implicit
from torchcbl.solvers import SOLVERS, Anderson, Newton, Picard, Trace, iterate


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("solver", ["anderson", "newton"])
@pytest.mark.parametrize("adjoint", ["exact", "anderson", "broyden", "newton", "picard"])
def test_implicit_is_the_gradient_of_the_closed_form(problem: str, solver: str, adjoint: str) -> None:
    known = PROBLEMS[problem]()
    if adjoint == "picard" and known.damping is None:
        return
    system = picard(known) if adjoint == "picard" else adjoint
    rule = Implicit(adjoint=system, tolerance=1e-13, steps=4000)
    for found, expected in zip(gradients(known, rule, SOLVERS[solver]()), known.gradients(weights(known)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [lambda y: y.sum(), lambda y: y.square().sum()])
def test_implicit_says_that_it_cannot_be_differentiated_twice(loss: object) -> None:
    known = tanh_network()
    theta = known.leaves()
    output = run(known, Implicit(), Anderson(), theta).output
    first = torch.autograd.grad(loss(output), theta, create_graph=True)  # type: ignore[operator]
    with pytest.raises(NotImplementedError, match="differentiated twice.*order=2.*or gradient='bptt'"):
        torch.autograd.grad(first[1].square().sum(), theta)
    with pytest.raises(ValueError, match=r"Implicit\(order=2\) needs an exact adjoint.*N = 4.*adjoint='anderson'"):
        run(known, Implicit(order=2, adjoint="anderson"), Anderson(), theta)


def test_implicit_can_run_backward_again_and_calls_hooks_once() -> None:
    weight, calls = random(4, 4).mul(0.2).requires_grad_(), []
    weight.register_hook(lambda g: calls.append(g))
    output = fixed_point(lambda s: torch.tanh(s @ weight + 0.3), random(3, 4), gradient="implicit").output
    output.sum().backward(retain_graph=True)
    first = weight.grad.clone()  # type: ignore[union-attr]
    output.sum().backward()
    torch.testing.assert_close(weight.grad, 2 * first)
    assert len(calls) == 2


def test_implicit_warns_where_the_adjoint_is_not_solved() -> None:
    known = symmetric()
    message = r"the adjoint system of gradient='implicit' was not solved for {} of 3 samples \({}"
    with pytest.warns(RuntimeWarning, match=message.format(3, "its relative residual is up to .* after 2 steps")):
        gradients(known, Implicit(adjoint="anderson", steps=2), Newton())
    singular = affine(torch.diag_embed(torch.tensor([[1.0, 0.5], [0.2, 0.5], [0.3, 0.1]], dtype=torch.float64)))
    singular = Known(singular.f, singular.start, (singular.theta[0], 0 * singular.theta[1]), singular.exact)
    for rule in (Implicit(), Implicit(order=2)):
        with pytest.warns(RuntimeWarning, match=message.format(1, "I - J is singular there")):
            found = gradients(singular, rule, Picard())
        assert all(bool(one.isfinite().all()) for one in found)
        a, v = singular.theta[0][0], weights(singular)[0]
        torch.testing.assert_close(found[1][0], v + a @ v if rule.order > 1 else v)


def test_an_adjoint_keeps_none_of_its_iterates(monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[Trace] = []

    def noted(*args: object, **options: object) -> Trace:
        traces.append(iterate(*args, **options))  # type: ignore[arg-type]
        return traces[-1]

    monkeypatch.setattr("torchcbl.gradients.implicit.iterate", noted)
    gradients(symmetric(), Implicit(adjoint="picard"), Newton())
    assert len(traces[0].residuals) > 20
    assert len(traces[0].outputs) == 1


@pytest.mark.parametrize("adjoint", ["picard", "anderson", "broyden"])
def test_an_adjoint_that_diverges_spoils_no_other_sample(adjoint: str) -> None:
    a = torch.tensor([[0.5], [-3.0], [0.9]], dtype=torch.float64)
    known = Known(lambda s, a, b: a * s + b, torch.zeros_like(a), (a, torch.ones_like(a)), lambda a, b: b / (1 - a))
    rule = Implicit(adjoint=adjoint, steps=2 if adjoint != "picard" else 500, tolerance=1e-12)
    with pytest.warns(RuntimeWarning, match="was not solved"):
        found = gradients(known, rule, Newton())
    assert all(bool(one.isfinite().all()) for one in found)
    if adjoint == "picard":
        expected = known.gradients(weights(known))
        torch.testing.assert_close(found[0][[0, 2]], expected[0][[0, 2]], rtol=1e-9, atol=0)
        assert torch.equal(found[1][1], weights(known)[1])  # u = v
