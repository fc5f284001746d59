"""The checklist of the fixed-point side, on real loops: every solver x gradient x schedule x stopping rule x cut."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

import torchcbl as cbl
from settling import KINDS, STEPS, Leaving, batch, built, close, summary, tensor_of
from torchcbl.gradients import Bptt, Checkpointed, Gradient, Implicit, Phantom, Truncated
from torchcbl.halting import Agreement, Confidence, Halting, Never, Tolerance
from torchcbl.schedules import SCHEDULES
from torchcbl.solvers import SOLVERS

RULES: list[Halting] = [Never(), Tolerance(2e-3), Confidence(0.34) & Tolerance(0.1) | Agreement(3)]


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
    assert torch.equal(tensor_of(found.returned), found.output)


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
        assert torch.equal(tensor_of(r.returned), r.output)
        for sample, steps in enumerate(r.steps.tolist()):
            torch.testing.assert_close(r.output[sample], plain.outputs[steps][sample], rtol=1e-9, atol=1e-9)
        if any(isinstance(module, nn.Dropout) for module in net.modules()) or together:
            return
        sizes.clear()
        kept = net.train().refine(x, steps=6, halting=leaving)
    assert set(sizes) == {6}
    for one, other in zip(summary(kept), summary(r), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
