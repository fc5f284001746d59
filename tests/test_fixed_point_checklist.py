"""The checklist of the fixed-point side, on real loops: every solver x gradient x schedule x stopping rule x cut."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import CASES, ResidualCnn
from torchcbl.gradients import GRADIENTS, Bptt, Checkpointed, Gradient, Implicit, Phantom, Truncated
from torchcbl.halting import Agreement, Confidence, Halting, Never, Progress, Tolerance
from torchcbl.schedules import SCHEDULES
from torchcbl.solvers import SOLVERS, Newton, Picard

KINDS = [(name, cut) for name, case in CASES.items() for cut in dict.fromkeys((case.cut, "replayed"))]
RULES: list[Halting] = [Never(), Tolerance(2e-3), Confidence(0.34) & Tolerance(0.1) | Agreement(3)]
STEPS = 5


@functools.cache
def built(name: str, cut: str, schedule: str = "repropagate", alpha: float = 0.0, dim: int = 3) -> cbl.ContextLoop:
    """Build a loop in float64 with awake adapters that contract."""
    torch.manual_seed(3)
    case = CASES[name]
    net = cbl.ContextLoop(case.build().double(), case.sites, case.example().double(), "concat", cbl.Context(dim=dim),
                          STEPS, alpha, schedule, cut=cut, step_norm="frozen", allow_dead=True)  # fmt: skip
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for module in net.adapters.values():
            module.hidden.weight.mul_(0.5)  # type: ignore[union-attr, operator]
        for parameter in net.adapters.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


def batch(name: str, size: int = 5) -> Tensor:
    return CASES[name].example(size).double()


def summary(r: cbl.Refinement, rows: object = slice(None)) -> list[Tensor]:
    return [*(y[rows] for y in r.outputs), r.residuals[:, rows], r.steps[rows], r.status[rows], r.evaluations[rows]]  # type: ignore[index]


def close(one: cbl.Refinement, other: cbl.Refinement, rows: object, error: float = 1e-9) -> None:
    for a, b in zip(summary(one), summary(other, rows), strict=True):
        torch.testing.assert_close(a, b, rtol=error, atol=error)


@pytest.mark.parametrize(
    "gradient", [Bptt(), Truncated(3), Checkpointed(), Phantom(), Implicit()], ids=lambda g: g.name
)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("cut", "alpha"), [("traced", 0.0), ("replayed", 0.3)])
def test_family(cut: str, schedule: str, alpha: float, solver: str, gradient: Gradient) -> None:
    net, x = built("mlp", cut, schedule, alpha), batch("mlp")
    order, others = torch.tensor([3, 0, 4, 2, 1]), [0, 2, 3, 4]
    spoilt = x.clone()
    spoilt[1] = torch.nan
    for halting in RULES:
        run = functools.partial(net.refine, solver=solver, gradient=gradient, halting=halting)
        together = run(x)
        assert len(together.outputs) == STEPS + 1
        assert together.residuals.shape == (STEPS, 5)
        close(run(x[order]), together, order)
        close(run(x[2:3]), together, slice(2, 3))
        dirty = run(spoilt)
        assert dirty.status[1] == cbl.Status.non_finite
        for a, b in zip(summary(dirty, others), summary(together, others), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
        wanted = [p for module in net.adapters.values() for p in module.parameters()]
        grads = torch.autograd.grad(together.output.square().sum(), wanted, allow_unused=True)
        live = [found.live for found in net._audit.adapters]
        per_adapter = len(wanted) // len(live)
        for index, is_live in enumerate(live):
            part = grads[index * per_adapter : (index + 1) * per_adapter]
            reached = any(g is not None and bool(g.any()) for g in part)
            assert reached or not is_live
            assert not reached or is_live or solver != "picard"  # others weigh steps by all of the state
            assert all(bool(g.isfinite().all()) for g in part if g is not None)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(("name", "cut"), KINDS)
def test_solvers_agree_on_every_backbone(name: str, cut: str, solver: str) -> None:
    net, x = built(name, cut), batch(name, 4)
    with torch.no_grad():
        limit = net.refine(x, steps=150)
        found = net.refine(x, steps=40, solver=solver, halting=Tolerance(1e-11))
        stuck = net.refine(x[:1], steps=40, solver=solver, halting=Tolerance(1e-11))
    assert (found.status == cbl.Status.converged).all()
    torch.testing.assert_close(found.output, limit.output, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(stuck.output, limit.output[:1], rtol=1e-8, atol=1e-9)
    assert torch.equal(_tensor(found.returned), found.output)


def _tensor(returned: object) -> Tensor:
    found = returned["out"] if isinstance(returned, dict) else returned
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize(("name", "cut"), KINDS)
def test_implicit_agrees_with_long_bptt_on_every_backbone(name: str, cut: str) -> None:
    net, x = built(name, cut, alpha=0.3 if cut == "traced" else 0.0), batch(name, 2)
    parameters = list(net.parameters())
    grads = []
    for gradient, options in (
        ("bptt", {"steps": 90}),
        (Implicit(tolerance=1e-12), {"steps": 60, "halting": Tolerance(1e-12)}),
        (Implicit("broyden", 1e-12), {"steps": 60, "solver": "anderson"}),
    ):
        loss = net.refine(x, gradient=gradient, **options).output.square().sum()  # type: ignore[arg-type]
        grads.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for unrolled, *others in zip(*grads, strict=True):
        for other in others:
            assert (other is None) == (unrolled is None)
            if unrolled is not None:
                torch.testing.assert_close(other, unrolled, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_second_derivatives(solver: str, cut: str) -> None:
    net, x = built("mlp", cut), batch("mlp").requires_grad_()
    found = []
    for gradient in ("bptt", "checkpointed", Implicit(order=2)):
        output = net.refine(x, gradient=gradient, solver=solver, steps=25, halting=Tolerance(1e-13)).output
        (first,) = torch.autograd.grad(output.pow(3).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), list(net.adapters.parameters())))
    for unrolled, *others in zip(*found, strict=True):
        for other in others:
            torch.testing.assert_close(other, unrolled, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(("name", "cut"), KINDS)
def test_the_solver_s_path_is_the_plain_loop_s(name: str, cut: str, training: bool) -> None:
    net, x = copy.deepcopy(built(name, cut, alpha=0.3)).train(training), batch(name, 3)
    runs, grads = [], []
    for gradient in ("bptt", "checkpointed"):
        torch.manual_seed(4)
        twin = copy.deepcopy(net)  # batch norm's running statistics move
        runs.append(twin.refine(x, gradient=gradient, steps=4))
        loss = sum(y.square().sum() for y in runs[-1].outputs)
        grads.append(torch.autograd.grad(loss, list(twin.adapters.parameters())))
    assert all(torch.equal(one, other) for one, other in zip(runs[0].outputs, runs[1].outputs, strict=True))
    close(runs[1], runs[0], slice(None), 1e-12)
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


class Leaving(Halting):
    """Sample i goes at a step of its own."""

    def __init__(self, *steps: int) -> None:
        self.steps = steps

    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        when = memory[0] if isinstance(memory, tuple) and memory else torch.tensor(self.steps)
        return progress.step >= when, (when,)


@pytest.mark.parametrize(("name", "cut"), KINDS)
def test_finished_samples_leave_the_batch(name: str, cut: str) -> None:
    net, x, leaving = copy.deepcopy(built(name, cut)), batch(name, 6), Leaving(3, 1, 4, 9, 1, 3)
    sizes: list[int] = []
    with torch.no_grad():
        plain = net.refine(x, steps=6)
        net.refine(x, steps=6, halting=leaving)  # which finds out where the samples are
        next(iter(net.adapters.values())).register_forward_hook(lambda module, args, h: sizes.append(len(args[1])))
        r = net.refine(x, steps=6, halting=leaving)
        together = name == "branching"  # which takes its branches for the batch as a whole
        assert sizes == ([6] * 6 if together else [6, 4, 4, 2, 1, 1]) + ([6] if isinstance(r.returned, dict) else [])
        assert r.steps.tolist() == [3, 1, 4, 6, 1, 3]
        assert (r.evaluations - r.steps).tolist() == [len(sizes) - 6] * 6
        assert torch.equal(_tensor(r.returned), r.output)
        for sample, steps in enumerate(r.steps.tolist()):
            torch.testing.assert_close(r.output[sample], plain.outputs[steps][sample], rtol=1e-9, atol=1e-9)
        if any(isinstance(module, nn.Dropout) for module in net.modules()) or together:
            return
        sizes.clear()
        kept = net.train().refine(x, steps=6, halting=leaving)
    assert set(sizes) == {6}
    for one, other in zip(summary(kept), summary(r), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_batches_of_none_and_one_and_no_steps(solver: str, gradient: str) -> None:
    for name, cut in (("mlp", "traced"), ("dense", "traced"), ("mlp", "replayed")):
        net, x = built(name, cut), batch(name, 2)
        options = {"gradient": gradient, "halting": Tolerance(1e-6)}
        if solver != "newton" or name == "mlp":
            for size in (0, 1):
                r = net.refine(x[:size], solver=solver, **options)  # type: ignore[arg-type]
                assert r.output.shape[0] == len(r.steps) == r.residuals.shape[1] == size
                assert _tensor(r.returned).shape == r.output.shape
                r.output.sum().backward()
        none = net.refine(x, steps=0, solver=solver, **options)  # type: ignore[arg-type]
        assert torch.equal(none.output, _tensor(net.backbone(x)))
        assert none.residuals.shape == (0, 2)


@pytest.mark.parametrize("solver", SOLVERS)
def test_copies_and_modes(solver: str) -> None:
    net, x = built("mlp", "traced"), batch("mlp")
    options = {"solver": solver, "halting": Tolerance(1e-8), "steps": 30}
    expected = net.refine(x, gradient="bptt", **options)  # type: ignore[arg-type]
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin.refine(x, **options).output, expected.output)
    for mode in (torch.no_grad, torch.inference_mode):
        for gradient in GRADIENTS:
            with mode():
                r = net.refine(x, gradient=gradient, **options)  # type: ignore[arg-type]
            assert torch.equal(r.output, expected.output)
            assert not r.output.requires_grad
    frozen = copy.deepcopy(net).requires_grad_(False)
    for gradient in GRADIENTS:
        assert not frozen.refine(x, gradient=gradient, **options).output.requires_grad  # type: ignore[arg-type]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", GRADIENTS)
def test_low_precision_and_autocast(solver: str, gradient: str) -> None:
    double, x = built("mlp", "traced"), batch("mlp")
    reference = double.refine(x, steps=60).output
    half = copy.deepcopy(double).bfloat16()
    r = half.refine(x.bfloat16(), solver=solver, gradient=gradient, steps=10)
    assert r.output.dtype == torch.bfloat16
    assert r.residuals.dtype == torch.float32
    torch.testing.assert_close(r.output.double(), reference, rtol=0, atol=0.05)
    r.output.float().sum().backward()
    single = copy.deepcopy(double).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        r = single.refine(x.float(), solver=solver, gradient=gradient, steps=10)
        torch.testing.assert_close(r.output.double(), reference, rtol=0, atol=0.05)
        loss = r.output.float().sum()
    loss.backward()
    for module in (half, single):
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


@pytest.mark.parametrize(("solver", "backend"), [("picard", "eager"), ("newton", "eager"), ("anderson", "aot_eager")])
def test_compiled(solver: str, backend: str) -> None:
    torch._dynamo.reset()
    net, x = copy.deepcopy(built("mlp", "traced")), batch("mlp")
    options = {"solver": solver, "halting": Tolerance(1e-6), "gradient": "implicit", "steps": 20}
    expected = net.refine(x, **options)  # type: ignore[arg-type]
    found = torch.compile(net.refine, backend=backend)(x, **options)
    close(found, expected, slice(None), 1e-10)
    found.output.sum().backward()


def test_a_loop_that_diverges_says_so() -> None:
    x = batch("mlp")
    linear = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)).double()
    net = cbl.ContextLoop(linear, "0", x, "additive", cbl.Context(dim=4)).eval()
    with torch.no_grad():
        for parameter in net.adapters.parameters():
            parameter.normal_(std=5.0)
        r = net.refine(x, steps=30, halting=Tolerance(1e-8))
        found = net.refine(x, steps=30, solver="newton", halting=Tolerance(1e-8))
        again = net.refine(x, steps=9, solver="anderson", halting=Tolerance(1e-8))
    assert (r.status == cbl.Status.diverged).all()
    assert (r.steps < 30).all()
    assert bool(r.output.isfinite().all())
    assert (found.status == cbl.Status.converged).all()
    assert found.steps.tolist() == [2] * 5
    torch.testing.assert_close(again.output, found.output, rtol=1e-6, atol=1e-8)
    with pytest.raises(RuntimeError, match="5 of 5 samples ended as 'diverged' after at most 30 steps .*samples 0, 1"):
        net.refine(x, steps=30, halting=Tolerance(1e-8), raise_on=("non_finite", "diverged"))


def test_newton_refuses_hidden_states_that_are_too_large() -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(ResidualCnn(), ("block1",), CASES["residual"].example(), alpha=0.3, step_norm="frozen")
    message = r"needs the Jacobian of each sample, 388 x 388 numbers for a state of N = 388 \(at most 256\)"
    with pytest.raises(ValueError, match=message):
        net.refine(CASES["residual"].example(), solver="newton")
    assert net.refine(CASES["residual"].example(), solver=Newton(400), steps=2).output.shape == (3, 4)


@pytest.mark.parametrize("dim", [3, 9])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("gradient", ["bptt", "truncated", "phantom", "implicit", Implicit(order=2)])
def test_evaluations_tell_what_was_computed(dim: int, alpha: float, gradient: str | Gradient) -> None:
    net, x = copy.deepcopy(built("mlp", "traced", alpha=alpha, dim=dim)), batch("mlp")
    calls: list[int] = []
    next(iter(net.adapters.values())).register_forward_hook(lambda module, args, h: calls.append(len(args[1])))
    extra = {"bptt": 0, "truncated": 0, "phantom": 5, "implicit": 1}[gradient] if isinstance(gradient, str) else 3
    if extra and dim == 3:  # z is the state, and y is read off one more evaluation
        extra += 1
    for solver in (Picard(), Picard(0.1), "anderson", "broyden"):
        calls.clear()
        r = net.refine(x, solver=solver, gradient=gradient, halting=Tolerance(1e-3), steps=20)
        assert sum(calls) == int(r.evaluations.sum())
        assert (r.evaluations - r.steps).tolist() == [extra] * 5
