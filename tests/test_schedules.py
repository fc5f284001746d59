"""The three schedules against their formulas, written out by hand in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import Mlp
from torchcbl.schedules import find_schedule, refine

STEPS = 4


class Affine(nn.Module):
    """psi(h, z) = A h + C z: a map with a known fixed point."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()
        self.a = nn.Linear(site.channels, site.channels)
        self.c = nn.Linear(context_dim, site.channels, bias=False)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return self.a(h) + self.c(z)


def loop(schedule: str, alpha: float, **options: object) -> cbl.ContextLoop:
    settings: dict[str, object] = {"adapter": Affine, "context": cbl.Context(dim=3), "allow_dead": True, **options}
    net = cbl.ContextLoop(
        Mlp().double(),
        ["first", "second"],
        torch.randn(5, 6).double(),
        steps=STEPS,
        schedule=schedule,
        alpha=alpha,
        **settings,  # type: ignore[arg-type]
    )
    return net.double()


def by_hand(net: cbl.ContextLoop, x: Tensor, schedule: str, alpha: float) -> list[Tensor]:
    """The formulas of the three schedules for Mlp: f1 = first, f2 = second o tanh, f3 = head o tanh."""
    b: Mlp = net.backbone  # type: ignore[assignment]
    psi1, psi2 = net.adapters.values()

    def f2(h: Tensor) -> Tensor:
        return b.second(torch.tanh(h))

    def f3(h: Tensor) -> Tensor:
        return b.head(torch.tanh(h))

    h1 = b.first(x)
    h2 = f2(h1)
    raw1, outputs = h1, [f3(h2)]
    for _ in range(STEPS):
        z = net.context.map(outputs[-1])
        if schedule == "literal":
            h1, h2 = alpha * h1 + (1 - alpha) * psi1(h1, z), alpha * h2 + (1 - alpha) * psi2(h2, z)
        elif schedule == "repropagate":
            h1 = alpha * h1 + (1 - alpha) * psi1(raw1, z)
            h2 = alpha * h2 + (1 - alpha) * psi2(f2(h1), z)
        else:
            h1, h2 = alpha * h1 + (1 - alpha) * psi1(raw1, z), alpha * h2 + (1 - alpha) * psi2(f2(h1), z)
        outputs.append(f3(h2))
    return outputs


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("schedule", ["literal", "repropagate", "synchronous"])
def test_schedules_follow_their_formulas(schedule: str, alpha: float, cut: str) -> None:
    net = loop(schedule, alpha, cut=cut)
    x = torch.randn(5, 6).double()
    expected = by_hand(net, x, schedule, alpha)
    r = net.refine(x)
    for tau, (output, value) in enumerate(zip(r.outputs, expected, strict=True)):
        torch.testing.assert_close(output, value, rtol=1e-12, atol=1e-12, msg=f"step {tau}")

    target = torch.randint(4, (5,))
    weights = [0.1, 0.2, 0.3, 0.25, 0.15]
    loss = cbl.refinement_loss(r, target, weights=weights)
    terms = [w * nn.functional.cross_entropy(y, target) for w, y in zip(weights, expected, strict=True)]
    ours = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(sum(terms), list(net.parameters()), allow_unused=True)  # type: ignore[arg-type]
    for (name, _), mine, his in zip(net.named_parameters(), ours, theirs, strict=True):
        assert (mine is None) == (his is None), name
        if mine is not None:
            torch.testing.assert_close(mine, his, rtol=1e-10, atol=1e-12, msg=name)


def test_the_three_schedules_differ() -> None:
    x = torch.randn(5, 6).double()
    outputs = []
    for schedule in ("literal", "repropagate", "synchronous"):
        torch.manual_seed(1)
        outputs.append(loop(schedule, 0.25)(x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[1], outputs[2])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize("schedule", ["literal", "repropagate", "synchronous"])
def test_gradcheck(schedule: str) -> None:
    net = loop(schedule, 0.25)
    x = torch.randn(2, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: net.refine(v).outputs, (x,))


class Scalar(nn.Module):
    """y = h = w x, whose loop is an affine map with an exact fixed point and exact gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.h = nn.Linear(1, 1, bias=False)
        self.y = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.y(self.h(x))


class Feedback(nn.Module):
    """psi(h, z) = h + c z."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.5))

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + self.c * z


class Itself(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return y


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_fixed_point_in_closed_form(alpha: float) -> None:
    # y_{t+1} = alpha y_t + (1 - alpha)(w x + c y_t): the fixed point is w x / (1 - c), whatever alpha
    context = cbl.Context(dim=1, map=lambda features, dim: Itself())
    net = cbl.ContextLoop(
        Scalar(), "h", torch.ones(1, 1), adapter=Feedback, context=context, steps=120, alpha=alpha
    ).double()
    x = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    w = net.backbone.get_parameter("h.weight")
    r = net.refine(x)
    torch.testing.assert_close(r.output, x @ w.T / (1 - 0.5), rtol=1e-12, atol=1e-12)
    assert r.status.tolist() == [cbl.Status.converged] * 2
    rate = alpha + (1 - alpha) * 0.5
    early = r.residuals[1:10]
    torch.testing.assert_close((early[1:] / early[:-1]).mean(), torch.tensor(rate).double(), rtol=0.15, atol=0)
    # d/dc of w x / (1 - c) is w x / (1 - c)^2
    c = net.get_parameter("adapters.h.c")
    (slope,) = torch.autograd.grad(r.output.sum(), c)
    torch.testing.assert_close(slope, (x @ w.T).sum() / 0.25, rtol=1e-9, atol=1e-9)


def test_diverging_and_still_moving_are_told_apart() -> None:
    context = cbl.Context(dim=1, map=lambda features, dim: Itself())
    net = cbl.ContextLoop(Scalar(), "h", torch.ones(1, 1), adapter=Feedback, context=context, steps=12)
    x = torch.ones(1, 1)
    with torch.no_grad():
        net.get_parameter("adapters.h.c").fill_(-0.95)
    assert net.refine(x).status.tolist() == [cbl.Status.max_steps]
    with torch.no_grad():
        net.get_parameter("adapters.h.c").fill_(1e30)
    assert net.refine(x).status.tolist() == [cbl.Status.non_finite]


def test_synchronous_needs_as_many_steps_as_sites() -> None:
    net = loop("synchronous", 0.0, adapter="film")
    x = torch.randn(2, 6).double()
    plain = net.refine(x, steps=0).output
    with torch.no_grad():
        net.adapters["first"].linear.bias.fill_(1.0)
    assert torch.equal(net.refine(x, steps=1).output, plain)
    assert not torch.equal(net.refine(x, steps=2).output, plain)


def test_an_adapter_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"returned shape \(2, 1\) for a hidden state of shape \(2, 3\)"):
        refine(lambda h, z: h[:, :1], torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1), 0.0)


def test_unknown_schedule() -> None:
    with pytest.raises(ValueError, match="schedule must be one of 'literal', 'repropagate', 'synchronous', got 'both'"):
        find_schedule("both")


def test_refinement_keeps_old_state_exactly_where_nothing_changes() -> None:
    h = torch.randn(3, 4)
    for alpha in (0.0, 0.1, 0.3, 0.7, 1.0):
        assert torch.equal(refine(lambda h, z: h, h, h, h, alpha), h)
