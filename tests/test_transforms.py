"""Loops within the transforms of torch.func: the same numbers, or an error that names the way out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from subject import awaken
from torchcbl.transforms import in_transform

X = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SOLVERS = ("picard", "anderson", "broyden", "newton")
WAYS_OUT = r"within transforms of torch.func .*loss.backward\(\).*gradient='bptt' or 'phantom'.*no_grad"


def build(**options: object) -> cbl.ContextLoop:
    torch.manual_seed(1)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    net = cbl.ContextLoop(backbone, "1", X, adapter="additive", steps=6, **options)  # type: ignore[arg-type]
    return awaken(net)


def loss(parameters: dict[str, Tensor], net: cbl.ContextLoop, x: Tensor) -> Tensor:
    return torch.func.functional_call(net, parameters, (x,)).square().sum()


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", ["bptt", "phantom", "truncated"])
def test_grad_is_the_gradient(solver: str, gradient: str) -> None:
    net = build(solver=solver, gradient=gradient)
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    found = torch.func.grad(loss)(parameters, net, X)
    net(X).square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("gradient", ["bptt", "checkpointed", "phantom", "truncated", "implicit"])
@torch.no_grad()
def test_without_gradients_every_rule_can_be_mapped(solver: str, gradient: str) -> None:
    net = build(solver=solver, gradient=gradient, halting=cbl.halting.Never())
    mapped = torch.func.vmap(lambda x: net(x[None])[0])(X)
    torch.testing.assert_close(mapped, net(X))


@pytest.mark.parametrize("gradient", ["checkpointed", "implicit"])
def test_rules_that_no_transform_can_follow_say_so(gradient: str) -> None:
    net = build(solver="anderson", gradient=gradient)
    parameters = {name: value.detach() for name, value in net.named_parameters()}
    with pytest.raises(RuntimeError, match=f"gradient='{gradient}' has no gradient {WAYS_OUT}"):
        torch.func.grad(loss)(parameters, net, X)
    with pytest.raises(RuntimeError, match=WAYS_OUT):
        torch.func.jacrev(net)(X)
    assert not in_transform()
    net(X).sum().backward()
