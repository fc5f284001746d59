"""Rates, the advice made from them, and the penalty for training."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from subject import awaken
from torchcbl.solvers import Picard
from torchcbl.theory import jacobian_penalty, posterior_bound
from torchcbl.theory.rates import Recommendation, damped_rate, geometric_rate


def test_damped_rate() -> None:
    eigenvalues = torch.tensor([[-0.9 + 0j, 0.5], [0.6j, 0.0], [2.0, -3.0]])
    assert damped_rate(eigenvalues, 0.0).tolist() == pytest.approx([0.9, 0.6, 3.0])
    assert damped_rate(eigenvalues, 0.5).tolist() == pytest.approx([0.75, abs(0.5 + 0.3j), 1.5])
    assert damped_rate(torch.zeros(2, 0, dtype=torch.complex64), 0.25).tolist() == [0.25, 0.25]


def test_geometric_rate_stops_at_rounding() -> None:
    lengths = torch.stack(
        [0.5 ** torch.arange(60).double(), 0.9 ** torch.arange(60).double(), torch.zeros(60).double()], 1
    )
    lengths[40:, 0] = 1e-14  # noise
    found = geometric_rate(lengths, torch.ones(3, 4).double())
    assert found[:2].tolist() == pytest.approx([0.5, 0.9])
    assert math.isnan(found[2])
    assert math.isnan(geometric_rate(lengths[:1], torch.ones(3, 4).double())[0])


def test_posterior_bound() -> None:
    bound = posterior_bound(torch.tensor([[1.0, 2.0, 3.0, 0.0]]), torch.tensor([0.5, 0.9, 1.0, 2.0]))
    assert bound.tolist() == [pytest.approx([1.0, 18.0, math.inf, 0.0])]


def swinging(strength: float, steps: int = 2) -> tuple[cbl.ContextLoop, Tensor]:
    """A loop whose map of y is near -strength y: it overshoots, which damping cures."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    x = torch.randn(4, 3).double()
    net = cbl.ContextLoop(backbone, "0", x, adapter="additive", context=cbl.Context(dim=3), steps=steps)
    adapter, eye = net.adapters["0"], torch.eye(3).double()
    with torch.no_grad():
        backbone[1].weight.copy_(eye)
        net.context.map.weight.copy_(-strength * eye + 0.05 * torch.randn(3, 3))
        adapter.down.weight.zero_()[:3] = eye  # type: ignore[union-attr]
        adapter.up.weight.zero_()[:, :3] = eye  # type: ignore[union-attr]
    return net.eval(), x


@pytest.mark.parametrize("strength", [0.5, 0.9, 3.0])
def test_the_advice_works_and_less_does_not(strength: float) -> None:
    net, x = swinging(strength)
    advice = cbl.contraction(net, x).recommend(1e-6)
    assert advice.alpha == pytest.approx(strength / (1 + strength), abs=0.06)
    assert advice.steps is not None
    r = net.refine(x, steps=advice.steps, solver=Picard(advice.alpha))
    assert (r.residuals[-1] <= 2e-6).all()
    assert advice.steps <= 12
    undamped = net.refine(x, steps=advice.steps)
    assert (undamped.residuals[-1] > 1e-5).all()
    assert f"alpha = {advice.alpha:.2g}, T = {advice.steps}" in str(advice)


def test_where_no_damping_helps_the_advice_says_so() -> None:
    net, x = swinging(-1.5)
    advice = cbl.contraction(net, x).recommend()
    assert advice.alpha is None
    assert advice.steps is None
    assert "no damping makes every sample settle" in str(advice)
    assert "no fixed point was found for 2: train with" in str(Recommendation(None, None, 1.0, None, 1e-4, lost=2))
    with pytest.raises(ValueError, match="recommend's tolerance must be finite and above 0"):
        cbl.contraction(net, x).recommend(0.0)


def test_nothing_fed_back_settles_at_once() -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), "0", torch.randn(4, 3), "additive")
    advice = cbl.contraction(net, torch.randn(4, 3)).recommend()
    assert (advice.alpha, advice.steps, advice.certified_steps) == (0.0, 1, 1)


def test_nothing_is_relative_to_a_fixed_point_of_zero() -> None:
    net, _ = swinging(0.5)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim == 1:
                parameter.zero_()
        net.backbone[0].weight.zero_()  # type: ignore[index,union-attr,operator]
        net.adapters["0"].up.bias.fill_(1.0)  # type: ignore[union-attr,operator]
        net.backbone[1].bias.copy_(-net.backbone[1].weight.sum(dim=1))  # type: ignore[index,union-attr,operator]
    report = cbl.contraction(net, torch.zeros(2, 3).double())
    assert float(report.fixed_point.abs().max()) == 0.0
    assert float(report.lengths[0].min()) > 0.0
    advice = report.recommend()
    assert (advice.steps, advice.certified_steps) == (None, None)
    assert "a fixed point is 0, which nothing is relative to" in str(advice)


def test_the_penalty_without_gradients_is_a_number() -> None:
    net, x = swinging(0.9)
    expected = jacobian_penalty(net, x, generator=torch.Generator().manual_seed(0))
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = jacobian_penalty(net, x.clone(), generator=torch.Generator().manual_seed(0))
        assert not found.requires_grad
        assert found == expected


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_what_the_penalty_costs_is_what_its_docstring_says(steps: int) -> None:
    net, x = swinging(0.9, steps)
    evaluated: list[bool] = []
    net.backbone.get_submodule("1").register_forward_hook(lambda *_: evaluated.append(torch.is_grad_enabled()))
    jacobian_penalty(net, x)
    assert evaluated[1:] == [*[False] * (steps - 1), True]  # the first is y_0
    said = " ".join(str(jacobian_penalty.__doc__).split())
    assert "Besides y_0 it costs T - 1 evaluations without gradients, one with," in said


def test_the_penalty_is_the_frobenius_norm() -> None:
    net, x = swinging(0.9)
    matrix = net.context.map.weight.detach()
    exact = float(matrix.square().sum()) / 3
    generator = torch.Generator().manual_seed(0)
    found = float(jacobian_penalty(net, x, probes=4000, generator=generator))
    assert found == pytest.approx(exact, rel=0.03)


def test_the_penalty_sees_the_map_of_a_context_that_is_detached_in_training() -> None:
    net, x = swinging(0.9)
    found = []
    for detach in (False, True):
        net.context.detach = detach
        penalty = jacobian_penalty(net, x, generator=torch.Generator().manual_seed(0))
        found.append((penalty, *torch.autograd.grad(penalty, net.context.map.weight)))
    assert found[0][0] > 0
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_penalty_has_the_gradient_of_the_frobenius_norm() -> None:
    net, x = swinging(0.9)
    penalty = jacobian_penalty(net, x, probes=4000, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad(penalty, net.context.map.weight)
    torch.testing.assert_close(found, 2 * net.context.map.weight.detach() / 3, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("mode", ["per_step", "shared", "frozen"])
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_the_penalty_trains_a_loop_to_contract_and_feeds_no_statistics(mode: str, alpha: float) -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = torch.randn(16, 4)
    net = awaken(cbl.ContextLoop(backbone, "1", x, step_norm=mode, alpha=alpha))
    net.refine(x)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    optimiser = torch.optim.Adam(net.adapter_parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = jacobian_penalty(net, x, probes=4)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert all(torch.equal(value, buffers[name]) for name, value in net.named_buffers())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_the_penalty_checks_its_probes() -> None:
    net, x = swinging(0.9)
    with pytest.raises(ValueError, match="jacobian_penalty's probes must be at least 1, got 0"):
        jacobian_penalty(net, x, probes=0)
