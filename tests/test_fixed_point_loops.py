"""The fixed-point side of a loop: precision, copies, threads, compilation, what is counted and what is refused."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings

import pytest
import torch
from torch import nn

import torchcbl as cbl
from backbones import CASES, ResidualCnn
from settling import batch, built, close, tensor_of
from subject import awaken
from torchcbl.gradients import GRADIENTS, Gradient, Implicit, Truncated
from torchcbl.halting import Tolerance
from torchcbl.solvers import SOLVERS, Newton, Picard


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
                assert tensor_of(r.returned).shape == r.output.shape
                r.output.sum().backward()
        none = net.refine(x, steps=0, solver=solver, **options)  # type: ignore[arg-type]
        assert torch.equal(none.output, tensor_of(net.backbone(x)))
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
    # on torch before pull request 165068, autocast's cache would take them away
    assert all(p.grad is not None and bool(p.grad.any()) for p in single.adapter_parameters())
    for module in (half, single):
        assert all(bool(p.grad.isfinite().all()) for p in module.parameters() if p.grad is not None)


class Wide(nn.Module):
    """y in float32, whatever the hidden states are in."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = nn.Linear(6, 16), nn.Linear(16, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.high(torch.tanh(self.low(x)))
        return y.float()


@pytest.mark.parametrize("adjoint", ["anderson", "broyden"])
@pytest.mark.parametrize("autocast", [False, True])
def test_the_adjoint_is_solved_as_far_as_rounding_lets_it(autocast: bool, adjoint: str) -> None:
    x = batch("mlp").float()
    single = awaken(cbl.ContextLoop(Wide(), "low", x, "additive", cbl.Context(dim=48), steps=20)).eval()
    net = copy.deepcopy(single) if autocast else copy.deepcopy(single).bfloat16()
    found = []
    for loop in (single, net):
        x = x.to(next(loop.parameters()).dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast and loop is net), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            y = loop.refine(x, gradient=Implicit(adjoint=adjoint)).output
            y.square().sum().backward()
        found.append(torch.cat([p.grad.float().flatten() for p in loop.parameters()]))  # type: ignore[union-attr]
    assert float((found[1] - found[0]).norm() / found[0].norm()) < 0.05


@pytest.mark.parametrize(("solver", "backend"), [("picard", "eager"), ("newton", "eager"), ("anderson", "aot_eager")])
def test_compiled(solver: str, backend: str) -> None:
    torch._dynamo.reset()
    net, x = copy.deepcopy(built("mlp", "traced")), batch("mlp")
    options = {"solver": solver, "halting": Tolerance(1e-6), "gradient": "implicit", "steps": 20}
    expected = net.refine(x, **options)  # type: ignore[arg-type]
    found = torch.compile(net.refine, backend=backend)(x, **options)
    close(found, expected, slice(None), 1e-10)
    found.output.sum().backward()


@pytest.mark.parametrize("source", ["logits", "probs", "3"])
def test_whatever_the_context_is_made_from(source: str) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = batch("mlp")
    net = awaken(cbl.ContextLoop(backbone, "1", x, "additive", cbl.Context(dim=3, source=source))).eval()
    unrolled = net.refine(x, steps=120)
    expected = torch.autograd.grad(unrolled.output.pow(3).sum(), list(net.adapters.parameters()))
    for solver in SOLVERS:
        r = net.refine(x, steps=120, solver=solver, gradient="implicit", halting=Tolerance(1e-12))
        torch.testing.assert_close(r.output, unrolled.output, rtol=1e-9, atol=1e-10)
        found = torch.autograd.grad(r.output.pow(3).sum(), list(net.adapters.parameters()))
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dim", [3, 9])  # the state holds z, or y
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_newton_does_not_know_of_a_detached_context(mode: type, alpha: float, dim: int) -> None:
    net, x = copy.deepcopy(built("mlp", "traced", alpha=alpha, dim=dim)), batch("mlp")
    options = {"solver": "newton", "gradient": "implicit", "halting": Tolerance(1e-10), "steps": 20}
    with mode():
        expected = net.refine(x, **options)  # type: ignore[arg-type]
        net.context.detach = True
        close(net.refine(x, **options), expected, slice(None), 1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize("dim", [3, 9])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
@pytest.mark.parametrize("rule", [Implicit(), Implicit(order=2), Implicit(adjoint="newton")], ids=repr)
def test_a_detached_context_has_one_gradient_whatever_the_rule(rule: Gradient, alpha: float, dim: int) -> None:
    net, x = copy.deepcopy(built("mlp", "traced", alpha=alpha, dim=dim)), batch("mlp")
    net.context.detach = True
    unrolled = net.refine(x, steps=80)
    solved = net.refine(x, steps=80, solver="newton", gradient=rule, halting=Tolerance(1e-12))
    torch.testing.assert_close(solved.output, unrolled.output, rtol=1e-9, atol=1e-10)
    parameters = list(net.parameters())
    for one, other in zip(
        *(torch.autograd.grad(r.output.pow(3).sum(), parameters, allow_unused=True) for r in (solved, unrolled)),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("order", [1, 2])
def test_a_state_that_depends_on_no_parameter_leaves_its_gradient_to_y(order: int) -> None:
    net, x = copy.deepcopy(built("mlp", "traced", dim=3)), batch("mlp")
    net.context.detach = True
    net.context.requires_grad_(False)  # z = g(y), and y has no gradient
    unrolled = net.refine(x, steps=80)
    solved = net.refine(x, steps=80, gradient=Implicit(order=order), halting=Tolerance(1e-12))
    torch.testing.assert_close(solved.output, unrolled.output, rtol=1e-9, atol=1e-10)
    parameters = [*net.backbone.parameters(), *net.adapters.parameters()]
    for one, other in zip(*(torch.autograd.grad(r.output.pow(3).sum(), parameters) for r in (solved, unrolled)),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


def truncated_by_hand(net: cbl.ContextLoop, x: torch.Tensor, steps: int, k: int, damping: float) -> torch.Tensor:
    """y_T, cut off from all that is before the z = g(.) of step T - k + 1."""
    low, high, head = net.backbone[:2], net.backbone[2:4], net.backbone[4]
    psi, alpha, from_y = net.adapters["1"], net.config.alpha, net.config.context.module_name is None
    h0 = h = low(x)
    source = high(h0)
    y = head(source)
    in_z, z = net.context.dim < 4 or not from_y, None
    for step in range(steps):
        if step == steps - k:
            y, source, h = y.detach(), source.detach(), h.detach()
            z = None if z is None else z.detach()
        made = net.context(y if from_y else source)
        z = made if z is None or not in_z else torch.lerp(made, z, damping)
        h = torch.lerp(psi(h0, z), h, alpha)
        source = high(h)
        new = head(source)
        y = new if in_z or step == steps - 1 else torch.lerp(new, y, damping)
    return y


@pytest.mark.parametrize(("alpha", "damping"), [(0.0, 0.0), (0.4, 0.0), (0.0, 0.3)])
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize(("source", "dim"), [("logits", 2), ("logits", 6), ("probs", 3), ("3", 3)])
def test_truncated_differentiates_whole_steps(source: str, dim: int, k: int, alpha: float, damping: float) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4)).double()
    x = batch("mlp")
    net = awaken(cbl.ContextLoop(backbone, "1", x, "additive", cbl.Context(dim, source), steps=5, alpha=alpha))
    expected = truncated_by_hand(net, x, 5, k, damping)
    r = net.refine(x, solver=Picard(damping), gradient=Truncated(k))
    torch.testing.assert_close(r.output, expected)
    assert (r.evaluations == 5 + (source == "3")).all()
    found, wanted = (torch.autograd.grad(y.pow(3).sum(), list(net.parameters())) for y in (r.output, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("solver", ["anderson", "newton"])
def test_threads_may_share_a_loop(solver: str, cut: str) -> None:
    net, wrong = built("mlp", cut), []
    inputs = [batch("mlp") + shift for shift in range(3)]
    options = {"solver": solver, "halting": Tolerance(1e-6), "steps": 8}
    with torch.no_grad():
        expected = [net.refine(x, **options).output for x in inputs]  # type: ignore[arg-type]

    def work(index: int) -> None:
        for _ in range(6):
            with torch.no_grad():
                if not torch.equal(net.refine(inputs[index], **options).output, expected[index]):  # type: ignore[arg-type]
                    wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong


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
