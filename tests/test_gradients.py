"""Every gradient rule against closed forms and finite differences in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from problems import (
    PROBLEMS,
    TIGHT,
    Counting,
    Known,
    cosine,
    gradients,
    mixed,
    picard,
    random,
    rotation,
    run,
    symmetric,
    tanh_network,
    weights,
)
from torchcbl.fixed_point import fixed_point
from torchcbl.gradients import GRADIENTS, Bptt, Checkpointed, Gradient, Implicit, Phantom, Problem, Truncated
from torchcbl.halting import Halting, Never, Progress, Tolerance
from torchcbl.refinement import Status
from torchcbl.solvers import Anderson, Broyden, Newton, Picard, Solver

RULES: list[Gradient] = [Bptt(), Checkpointed(), Truncated(2), Phantom(3, 0.3), Implicit()]
FEW: list[Solver] = [Picard(0.2), Anderson(3), Broyden(5), Newton()]


@pytest.mark.parametrize("problem", [name for name in PROBLEMS if PROBLEMS[name]().damping is not None])
@pytest.mark.parametrize("rule", [Bptt(), Checkpointed(), Truncated(500), Phantom(500, 0.2)], ids=repr)
def test_long_rules_agree_with_the_closed_form(problem: str, rule: Gradient) -> None:
    known = PROBLEMS[problem]()
    if problem == "rotation" and isinstance(rule, Phantom):
        rule = Phantom(500, 0.5)
    if problem == "mixed":  # rate 0.99 wants thousands of steps
        known = Known(known.f, known.start[:4], tuple(value[:4] for value in known.theta), known.exact)
    found = gradients(known, rule, picard(known), halting=Never(), steps=600)
    for one, expected in zip(found, known.gradients(weights(known)), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", FEW, ids=repr)
@pytest.mark.parametrize("build", [tanh_network, cosine, symmetric])
def test_bptt_through_a_solver_becomes_the_implicit_gradient(solver: Solver, build: object) -> None:
    known = build()  # type: ignore[operator]
    found = gradients(known, Bptt(), solver, halting=Tolerance(1e-12))
    # Broyden ends on an affine map in finitely many steps, and the derivative of its steps lags behind (Griewank 1993)
    error = 0.05 if build is symmetric and isinstance(solver, Broyden) else 1e-6
    for one, expected in zip(found, known.gradients(weights(known)), strict=True):
        torch.testing.assert_close(one, expected, rtol=error, atol=error)


@pytest.mark.parametrize("solver", FEW, ids=repr)
@pytest.mark.parametrize("rule", [Bptt(), Checkpointed(), Truncated(4), Implicit(), Implicit(order=2)], ids=repr)
def test_gradcheck(rule: Gradient, solver: Solver) -> None:
    known = tanh_network()
    known = Known(known.f, known.start[:1], tuple(value[:1] for value in known.theta), known.exact)
    exact = isinstance(rule, Implicit)  # which differentiates the limit
    halting, steps = (Tolerance(1e-13), 60) if exact else (Never(), 4)
    assert torch.autograd.gradcheck(lambda *theta: run(known, rule, solver, list(theta), halting, steps).output,
                                    known.leaves(), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("solver", FEW, ids=repr)
@pytest.mark.parametrize("rule", [Truncated(2), Phantom(3, 0.3)], ids=repr)
def test_short_rules_are_what_they_say(rule: Gradient, solver: Solver) -> None:
    known = tanh_network()
    theta = known.leaves()
    with torch.no_grad():
        early = fixed_point(known.f, known.start, theta, solver=solver, halting=None,
                            steps=4 if isinstance(rule, Truncated) else 6, gradient="bptt")  # fmt: skip
    damping = (
        rule.damping if isinstance(rule, Phantom) else getattr(solver, "damping", 0.0) * isinstance(solver, Picard)
    )
    s = early.value if isinstance(rule, Phantom) else damping * early.point + (1 - damping) * early.value
    for step in range(rule.steps):  # type: ignore[attr-defined]
        value = known.f(s, *theta)
        last = isinstance(rule, Truncated) and step == rule.steps - 1
        s = value if last else damping * s + (1 - damping) * value
    output = run(known, rule, solver, theta, Never(), steps=6).output
    torch.testing.assert_close(output, s, rtol=0, atol=1e-14)
    for order in range(2):
        pairs = [torch.autograd.grad((y.pow(3) * weights(known)).sum(), theta, create_graph=True) for y in (output, s)]
        if order:
            pairs = [torch.autograd.grad(sum(g.pow(2).sum() for g in one), theta) for one in pairs]
        for found, expected in zip(*pairs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def series(known: Known, damping: float, terms: int) -> list[Tensor]:
    """v^T (1 - d) sum_{i<k} (d I + (1 - d) A)^i dG/dtheta at s*, for an affine map."""
    a, s = known.theta[0], known.answer()
    damped = damping * torch.eye(a.shape[1], dtype=a.dtype) + (1 - damping) * a
    power, u = weights(known)[:, None], 0.0
    for _ in range(terms):
        u = u + (1 - damping) * power
        power = power @ damped
    return [u.mT @ s[:, None], u[:, 0]]  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("build", [symmetric, rotation])
@pytest.mark.parametrize(("rule", "damping"), [(Phantom, 0.0), (Phantom, 0.5), (Phantom, 0.8), (Truncated, 0.0)])
def test_the_bias_of_short_rules_is_that_of_their_series(build: object, rule: type, damping: float) -> None:
    known = build()  # type: ignore[operator]
    errors = []
    for terms in (1, 2, 5, 10, 20):
        if rule is Phantom:
            made, solver, halting = Phantom(terms, damping), Newton(), TIGHT
        else:
            made, solver, halting = Truncated(terms), Newton(), Never()
        found = gradients(known, made, solver, halting=halting, steps=terms + 4)
        for one, expected in zip(found, series(known, damping, terms), strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)
        errors.append((found[1] - known.gradients(weights(known))[1]).norm(dim=1))
    eigenvalues = torch.linalg.eigvals(known.theta[0])
    rho = (damping + (1 - damping) * eigenvalues).abs().amax(dim=1)
    measured = (errors[4] / errors[3]) ** 0.1
    torch.testing.assert_close(measured, rho, rtol=0.05, atol=0)
    assert ((errors[4] < errors[3]) == (rho < 1)).all()


@pytest.mark.parametrize("solver", FEW, ids=repr)
@pytest.mark.parametrize("rule", [Bptt(), Checkpointed(), Implicit(order=2)], ids=repr)
def test_gradgradcheck(rule: Gradient, solver: Solver) -> None:
    known = cosine()
    halting, steps = (Tolerance(1e-14), 200) if isinstance(rule, Implicit) else (Never(), 4)
    theta = [(value * 0.8).requires_grad_() for value in known.theta]
    assert torch.autograd.gradgradcheck(
        lambda *theta: run(known, rule, solver, list(theta), halting, steps).output, theta, atol=1e-6
    )


@pytest.mark.parametrize("rule", [Bptt(), Checkpointed()], ids=repr)
def test_a_singular_sample_of_newton_leaves_the_gradient_of_the_others_alone(rule: Gradient) -> None:
    p = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    rates = torch.tensor([[1.0], [2.0]], dtype=torch.float64)  # I - J is 0.5 and 0
    start = torch.zeros_like(rates)
    output = fixed_point(
        lambda s, a: a * p * s + 1, start, [rates], solver="newton", gradient=rule, steps=4, halting=None
    ).output
    torch.testing.assert_close(output[:, 0], torch.tensor([2.0, 4.0], dtype=torch.float64))
    alone = [torch.autograd.grad(y, p, retain_graph=True)[0] for y in output[:, 0]]
    torch.testing.assert_close(alone[0], torch.tensor(4.0, dtype=torch.float64))  # of 1 / (1 - p)
    assert alone[1] == 12  # of the plain steps 1, 1 + 2 p, 1 + 2 p (1 + 2 p), ... that were taken instead
    torch.testing.assert_close(torch.autograd.grad(output.sum(), p)[0], sum(alone))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_nothing_wants_a_gradient(rule: Gradient) -> None:
    known = tanh_network()
    output = run(known, rule, Anderson(), list(known.theta)).output
    assert not output.requires_grad
    with torch.no_grad():
        plain = run(known, rule, Anderson(), known.leaves())
    with torch.inference_mode():
        inferred = run(known, rule, Anderson(), list(known.theta))
    bptt = fixed_point(known.f, known.start, known.theta, solver=Anderson(), gradient="bptt", halting=TIGHT, steps=3000)
    assert torch.equal(plain.output, bptt.output)
    assert torch.equal(inferred.output, bptt.output)
    assert torch.equal(plain.evaluations, bptt.evaluations)


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("solver", FEW, ids=repr)
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_samples_that_finish_early_have_their_own_gradient(rule: Gradient, solver: Solver, compact: bool) -> None:
    known = mixed()

    def one(rows: list[int]) -> list[Tensor]:
        theta = [value[rows].clone().requires_grad_() for value in known.theta]
        trace = fixed_point(known.f, known.start[rows], theta, solver=solver, gradient=rule, halting=Tolerance(1e-3),
                            steps=12, compact=compact)  # fmt: skip
        outputs = trace.outputs if isinstance(rule, (Bptt, Checkpointed)) else trace.outputs[-1:]
        loss = sum((tau + 1) * output.square().sum() for tau, output in enumerate(outputs))
        return [*torch.autograd.grad(loss, theta), trace.output.detach()]

    together = one(list(range(6)))
    for index in range(6):
        for alone, found in zip(one([index]), together, strict=True):
            torch.testing.assert_close(alone[0], found[index], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rule", [*RULES, Implicit(order=3), Truncated(20)], ids=repr)
def test_evaluations_are_those_that_were_made(rule: Gradient) -> None:
    known = mixed()
    g = Counting(known.f, known.start, tuple(known.leaves()))
    trace = rule.run(Problem(g, known.start, known.start, Picard(), Tolerance(1e-2), 12))
    assert torch.equal(trace.evaluations, g.tally)
    before = g.tally.clone()
    trace.output.sum().backward()
    repeated = g.tally - before
    assert torch.equal(repeated, trace.steps if isinstance(rule, Checkpointed) else 0 * repeated)


@pytest.mark.parametrize("name", GRADIENTS)
def test_memory_in_the_number_of_steps(name: str) -> None:
    known = tanh_network()

    def kept(steps: int) -> int:
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            run(known, GRADIENTS[name](), Picard(), known.leaves(), Never(), steps)
        return total

    assert (kept(40) > 1.5 * kept(20)) == (name in ("bptt", "checkpointed"))
    if name == "checkpointed":
        assert kept(0) == 0


@pytest.mark.parametrize("solver", FEW, ids=repr)
def test_checkpointed_is_bptt_to_the_last_bit(solver: Solver) -> None:
    known = tanh_network()
    for one, other in zip(*(gradients(known, rule, solver, steps=9) for rule in (Bptt(), Checkpointed())), strict=True):
        assert torch.equal(one, other)


def test_parameters_and_starts() -> None:
    known, weight = tanh_network(), random(4, 4).mul(0.2).requires_grad_()
    for rule in RULES:
        start = known.start.clone().requires_grad_()
        output = fixed_point(lambda s: torch.tanh(s @ weight + 0.3), start, gradient=rule, solver="picard", steps=9,
                             halting=None).output  # fmt: skip
        by_weight, by_start = torch.autograd.grad(output.sum(), [weight, start], allow_unused=True)
        assert bool(by_weight.any())
        assert (by_start is not None) == isinstance(rule, (Bptt, Checkpointed))


def test_options_are_checked() -> None:
    for make, message in [
        (lambda: Truncated(0), "Truncated's steps must be at least 1, got 0"),
        (lambda: Phantom(0), "Phantom's steps must be at least 1, got 0"),
        (lambda: Phantom(2, 1.0), r"Phantom's damping must lie in \[0, 1\), got 1.0"),
        (lambda: Implicit(tolerance=0.0), "Implicit's tolerance must be finite and above 0, got 0.0"),
        (lambda: Implicit(steps=0), "Implicit's steps must be at least 1, got 0"),
        (lambda: Implicit(order=0), "Implicit's order must be at least 1, got 0"),
        (lambda: Implicit(adjoint="cg"), "Implicit's adjoint must be 'auto', 'exact', one of 'picard', .* got 'cg'"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="Implicit's adjoint must be 'auto', 'exact', a solver's name or an object"):
        Implicit(adjoint=Anderson)  # type: ignore[arg-type]


class Once(Halting):
    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        return torch.ones_like(progress.residual, dtype=torch.bool), memory


@pytest.mark.parametrize(("halting", "names"), [
    (Tolerance(1e-8), ["converged", "diverged", "max_steps", "non_finite"]),
    (Once(), ["halted", "halted", "halted", "non_finite"]),
])  # fmt: skip
def test_truncated_keeps_how_a_sample_ended_before(halting: Halting, names: list[str]) -> None:
    rates = torch.tensor([[0.5], [30.0], [0.9], [torch.nan]], dtype=torch.float64)
    start, rule = torch.ones_like(rates), Truncated(2)
    trace = fixed_point(
        lambda s, a: a * s + 1, start, [rates], solver="picard", gradient=rule, steps=40, halting=halting
    )
    assert [Status(status).name for status in trace.status.tolist()] == names
