"""Every solver against closed forms in float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from problems import PROBLEMS, TIGHT, Counting, Known, affine, expanding, kepler, mixed, square_root, symmetric
from torchcbl.fixed_point import fixed_point
from torchcbl.halting import Never, Tolerance
from torchcbl.refinement import Status
from torchcbl.solvers import SOLVERS, Anderson, Broyden, FunctionMap, Newton, Picard, Solver, iterate


def solve(problem: Known, solver: Solver, steps: int = 3000, **options: object) -> object:
    with torch.no_grad():
        settings: dict[str, object] = {"halting": TIGHT, **options}
        return fixed_point(problem.f, problem.start, problem.theta, solver=solver, steps=steps, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", SOLVERS)
def test_finds_the_fixed_point(name: str, problem: str) -> None:
    known = PROBLEMS[problem]()
    solver = Picard(known.damping or 0.0) if name == "picard" else SOLVERS[name]()
    trace = solve(known, solver)
    if name == "picard" and known.damping is None:
        assert (trace.status == Status.diverged).all()
        return
    assert (trace.status == Status.converged).all()
    torch.testing.assert_close(trace.output, known.answer(), rtol=1e-10, atol=1e-10)
    assert (trace.residuals[-1] <= 1e-13).all()


def test_damping_is_the_weight_of_the_old_and_sets_the_rate() -> None:
    known = affine(torch.tensor([[[0.6]], [[-0.6]]], dtype=torch.float64))
    for damping in (0.0, 0.25, 0.9):
        moved = torch.stack(solve(known, Picard(damping), steps=9, halting=Never()).moved)
        expected = damping + (1 - damping) * torch.tensor([0.6, -0.6], dtype=torch.float64)
        torch.testing.assert_close(moved[1:] / moved[:-1], expected.abs().expand(8, 2), rtol=1e-9, atol=0)


def krylov_iterate(known: Known, steps: int) -> Tensor:
    """G of the GMRES iterate: argmin ||b - (I - A) s|| over the Krylov space of b (s_0 = 0)."""
    a, b = known.theta
    system = torch.eye(b.shape[1], dtype=b.dtype) - a
    basis = [b]
    for _ in range(steps - 1):
        basis.append((system @ basis[-1][:, :, None])[:, :, 0])
    space = torch.linalg.qr(torch.stack(basis, dim=2))[0]
    weights = torch.linalg.lstsq(system @ space, b[:, :, None]).solution
    return known.f((space @ weights)[:, :, 0], a, b)


@pytest.mark.parametrize("build", [symmetric, expanding])
def test_anderson_is_gmres_on_affine_maps(build: object) -> None:
    known = build()  # type: ignore[operator]
    size = known.start.shape[1]
    for steps in range(1, size + 1):
        point = solve(known, Anderson(memory=size, ridge=1e-15), steps=steps + 2, halting=Never()).point
        torch.testing.assert_close(point, krylov_iterate(known, steps), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(point, known.answer(), rtol=1e-6, atol=1e-6)


def test_anderson_holds_back_a_share_of_the_residual() -> None:
    known = symmetric()
    s = [known.start]
    values = [known.f(s[0], *known.theta)]
    s.append(0.3 * s[0] + 0.7 * values[0])
    values.append(known.f(s[1], *known.theta))
    r = [value - at for value, at in zip(values, s, strict=True)]
    c = ((r[1] - r[0]) * r[1]).sum(1, keepdim=True) / (r[1] - r[0]).square().sum(1, keepdim=True)
    mean_s, mean_value = ((1 - c) * now + c * before for now, before in ((s[1], s[0]), (values[1], values[0])))
    expected = 0.3 * mean_s + 0.7 * mean_value
    found = solve(known, Anderson(memory=1, damping=0.3), steps=3, halting=Never()).point
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_broyden_is_the_secant_method_in_one_dimension() -> None:
    known = kepler()
    s = [known.start, known.f(known.start, *known.theta)]
    for _ in range(3):
        r = [known.f(at, *known.theta) - at for at in s[-2:]]
        s.append(s[-1] - r[1] * (s[-1] - s[-2]) / (r[1] - r[0]))
    for steps in (3, 4, 5):
        point = solve(known, Broyden(), steps=steps, halting=Never()).point
        torch.testing.assert_close(point, s[steps - 1], rtol=1e-9, atol=1e-9)


def test_broyden_ends_within_two_n_steps_on_affine_maps() -> None:
    known = symmetric(size=3)
    trace = solve(known, Broyden(), steps=8, halting=Never())  # Gay 1979
    torch.testing.assert_close(trace.point, known.answer(), rtol=0, atol=1e-9)
    early = solve(known, Broyden(), steps=3, halting=Never())
    assert (early.point - known.answer()).norm(dim=1).max() > 1e-4


def test_newton_is_exact_after_one_step_on_affine_maps_and_quadratic_elsewhere() -> None:
    known = expanding()
    torch.testing.assert_close(solve(known, Newton(), steps=2, halting=Never()).point, known.answer())
    known = kepler()
    errors = [
        (solve(known, Newton(), steps=steps, halting=Never()).point - known.answer()).abs() for steps in (2, 3, 4, 5)
    ]
    curvature = known.theta[1] * known.answer().sin() / (2 * (1 - known.theta[1] * known.answer().cos()))
    compared = 0
    for before, after in itertools.pairwise(errors):
        within = (before < 0.05) & (before > 1e-6)
        compared += int(within.sum())
        torch.testing.assert_close((after / before**2)[within], curvature.abs()[within], rtol=0.3, atol=0)
    assert compared > 3


@pytest.mark.parametrize("solver", [Picard(0.2), Anderson(3), Broyden(4), Newton()], ids=repr)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_units_do_not_matter(solver: Solver, scale: float) -> None:
    known = symmetric()
    scaled = Known(known.f, known.start, (known.theta[0], scale * known.theta[1]), known.exact)
    one, other = (solve(each, solver, steps=6, halting=Never()).point for each in (known, scaled))
    torch.testing.assert_close(other / scale, one, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("solver", [Picard(), Anderson(), Broyden(), Newton()], ids=repr)
def test_standing_at_the_fixed_point_is_no_trouble(solver: Solver) -> None:
    known = square_root()
    start = torch.tensor([[1.0], [2.0], [0.0]], dtype=torch.float64)
    arguments = [torch.tensor([[1.0], [4.0], [0.0]], dtype=torch.float64)]
    trace = fixed_point(known.f, start[:2], [arguments[0][:2]], solver=solver, halting=None, steps=8, gradient="bptt")
    assert torch.equal(trace.output, start[:2])
    assert (torch.stack(trace.residuals) == 0).all()
    still = fixed_point(lambda s: 0 * s, start, solver=solver, halting=None, steps=8)
    assert torch.equal(still.output, torch.zeros_like(start))
    assert (torch.stack(still.residuals)[1:] == 0).all()


@pytest.mark.parametrize("solver", [Anderson(2), Broyden(2)], ids=repr)
def test_memory_is_limited(solver: Solver) -> None:
    known = symmetric()
    s, memory, sizes = known.start, solver.init(known.start), []
    for _ in range(7):
        s, memory = solver.step(memory, s, known.f(s, *known.theta), lambda point: point)
        sizes += [len(part[0]) for part in memory if part.ndim == 3]  # type: ignore[attr-defined]
    assert max(sizes) == 2


@pytest.mark.parametrize("solver", [Anderson(1), Broyden(1), Anderson(2), Broyden(3)], ids=repr)
def test_short_memories_converge_too(solver: Solver) -> None:
    known = symmetric(size=8)
    torch.testing.assert_close(solve(known, solver).output, known.answer(), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("compact", [True, False])
def test_a_sample_is_not_touched_by_the_others(name: str, compact: bool) -> None:
    known = mixed()
    solver = SOLVERS[name]()
    together = solve(known, solver, steps=40, compact=compact, halting=Tolerance(1e-6))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = Known(known.f, known.start[order], tuple(t[order] for t in known.theta), known.exact)
    shuffled = solve(permuted, solver, steps=40, compact=compact, halting=Tolerance(1e-6))
    torch.testing.assert_close(shuffled.output, together.output[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(shuffled.steps, together.steps[order])
    for index in range(6):
        one = slice(index, index + 1)
        alone = solve(Known(known.f, known.start[one], tuple(t[one] for t in known.theta), known.exact), solver,
                      steps=40, compact=compact, halting=Tolerance(1e-6))  # fmt: skip
        torch.testing.assert_close(alone.output, together.output[one], rtol=1e-12, atol=1e-12)
        assert torch.equal(alone.steps, together.steps[one])
        assert torch.equal(alone.evaluations, together.evaluations[one])
        assert torch.equal(alone.status, together.status[one])


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("halting", [Never(), TIGHT], ids=repr)
def test_nan_in_one_sample_stays_there(name: str, halting: object) -> None:
    known = symmetric()
    spoilt = known.start.clone()
    spoilt[1, 2] = torch.nan
    clean = solve(known, SOLVERS[name](), steps=12, halting=halting)
    dirty = solve(Known(known.f, spoilt, known.theta, known.exact), SOLVERS[name](), steps=12, halting=halting)
    assert torch.equal(dirty.output[[0, 2]], clean.output[[0, 2]])
    assert dirty.status[1] == Status.non_finite
    assert torch.equal(dirty.steps[[0, 2]], clean.steps[[0, 2]])


@pytest.mark.parametrize("solver", [Anderson(), Broyden(), Newton()], ids=repr)
def test_singular_systems_fall_back_to_the_value(solver: Solver) -> None:
    s = torch.zeros(1, 2, dtype=torch.float64)
    trace = fixed_point(lambda s: s + 1, s, solver=solver, gradient="bptt", halting=None, steps=5)  # it has none
    assert torch.equal(trace.output, torch.full_like(s, 5.0))
    assert trace.status[0] == Status.max_steps


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 2e-2)])
def test_lower_precisions(name: str, dtype: torch.dtype, error: float) -> None:
    known = symmetric()
    theta = [value.to(dtype) for value in known.theta]
    trace = fixed_point(known.f, known.start.to(dtype), theta, solver=name, steps=60, halting=None)
    assert trace.output.dtype == dtype
    torch.testing.assert_close(trace.output.double(), known.answer(), rtol=0, atol=error)


def test_evaluations_are_those_that_were_made() -> None:
    known = mixed()
    for solver in (Picard(), Anderson(), Broyden()):
        g = Counting(known.f, known.start, known.theta)
        trace = iterate(g, known.start, known.start, solver, Tolerance(1e-6), 50)
        assert torch.equal(trace.evaluations, g.tally)
        assert torch.equal(trace.steps, g.tally)
        assert len(set(g.tally.tolist())) > 1
    known = symmetric()
    trace = solve(known, Newton())
    assert trace.evaluations.tolist() == [int(steps) + 4 * (int(steps) - 1) for steps in trace.steps]


def test_newton_refuses_large_spaces() -> None:
    message = (
        r"solver='newton' needs the Jacobian of each sample, 257 x 257 numbers for a state of N = 257 \(at most 256\)"
    )
    with pytest.raises(ValueError, match=message):
        fixed_point(torch.cos, torch.zeros(2, 257), solver="newton")
    assert fixed_point(torch.cos, torch.zeros(1, 257), solver=Newton(max_size=300)).output.shape == (1, 257)


def test_options_are_checked() -> None:
    for make, message in [
        (lambda: Picard(1.0), r"Picard's damping must lie in \[0, 1\), got 1.0"),
        (lambda: Anderson(0), "Anderson's memory must be at least 1, got 0"),
        (lambda: Anderson(damping=-0.1), r"Anderson's damping must lie in \[0, 1\), got -0.1"),
        (lambda: Anderson(ridge=0.0), "Anderson's ridge must be finite and above 0, got 0.0"),
        (lambda: Broyden(0), "Broyden's memory must be at least 1, got 0"),
        (lambda: Newton(0), "Newton's max_size must be at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(TypeError, match="Broyden's memory must be a whole number, at least 1, got 1.5"):
        Broyden(1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SOLVERS)
def test_autocast_leaves_the_arithmetic_of_solvers_alone(name: str) -> None:
    known, seen = symmetric(), []

    def f(s: Tensor, a: Tensor, b: Tensor) -> Tensor:
        seen.append(torch.is_autocast_enabled("cpu"))
        return known.f(s, a, b)

    start, theta = known.start.float(), [value.float() for value in known.theta]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trace = fixed_point(f, start, theta, solver=name, steps=60, halting=None)
    assert all(seen)
    assert trace.value.dtype == torch.float32
    torch.testing.assert_close(trace.output.double(), known.answer(), rtol=0, atol=0.1)


def test_arguments_have_the_batch_first() -> None:
    with pytest.raises(ValueError, match=r"args\[1\] has shape \(4, 4\), expected 3 samples first"):
        fixed_point(lambda s, x, w: s @ w + x, torch.zeros(3, 4), [torch.zeros(3, 4), torch.zeros(4, 4)])
    with pytest.raises(TypeError, match=r"args must be a sequence of arguments, got one tensor: pass \[x\]"):
        fixed_point(lambda s, x: s / 2 + x, torch.zeros(3, 4), torch.zeros(3, 4))  # type: ignore[arg-type]


def test_a_map_must_keep_the_shape() -> None:
    with pytest.raises(ValueError, match=r"the map returned \(2, 2\) for a state of shape \(2, 3\), expected the same"):
        FunctionMap(lambda s: s[:, :2], (2, 3))(torch.zeros(2, 3))


@pytest.mark.parametrize("solver", [Anderson(memory=20), Broyden(memory=40), Newton()], ids=repr)
def test_solvers_that_need_no_contraction_may_go_far(solver: Solver) -> None:
    """An affine map of spectral radius 66: steps get thousands of times as long as the start before they shrink."""
    matrices = 66.0 * torch.diag_embed(torch.tensor([[1.0, -0.6, 0.3, -0.1, 0.02]], dtype=torch.float64))
    problem = affine(matrices, damping=None)
    g = FunctionMap(problem.f, problem.start.shape, problem.theta)
    trace = iterate(g, problem.start, problem.start, solver, Tolerance(1e-10), 200)
    assert trace.status.tolist() == [Status.converged]
    torch.testing.assert_close(trace.value, problem.answer(), rtol=1e-8, atol=1e-8)
    plain = iterate(g, problem.start, problem.start, Picard(), Tolerance(1e-10), 200)
    assert plain.status.tolist() == [Status.diverged]
