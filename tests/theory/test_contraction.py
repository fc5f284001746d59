"""What is measured at the fixed point, against closed forms; what is certified, against what is measured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import ResidualCnn
from subject import awaken
from torchcbl.adapters import Adapter
from torchcbl.halting import Never
from torchcbl.lab.networks import StandardCNN
from torchcbl.solvers import Picard, Trace, iterate


def linear_loop(steps: int = 3, **options: object) -> tuple[cbl.ContextLoop, Tensor, Tensor]:
    """A loop that is affine: y = V (W x + U_2 U_1 (C y + c) + u) + v. Returns it, a batch, and the matrix of y -> y."""
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    net = cbl.ContextLoop(
        backbone, "0", x, adapter="additive", context=cbl.Context(dim=8), steps=steps, **options  # type: ignore[arg-type]
    )  # fmt: skip
    adapter = awaken(net).adapters["0"]
    matrix = backbone[1].weight @ adapter.up.weight @ adapter.down.weight @ net.context.map.weight
    return net, x, matrix.detach()


def test_an_affine_loop_has_the_numbers_of_its_matrix() -> None:
    net, x, matrix = linear_loop()
    report = cbl.contraction(net, x)
    norm, eigenvalues = torch.linalg.matrix_norm(matrix, ord=2), torch.linalg.eigvals(matrix)
    assert (report.space, report.size, report.exact, report.alpha) == ("y", 3, True, 0.0)
    torch.testing.assert_close(report.spectral_norm, norm.expand(5), rtol=1e-10, atol=0)
    torch.testing.assert_close(report.spectral_radius, eigenvalues.abs().max().expand(5), rtol=1e-10, atol=0)
    torch.testing.assert_close(report.asymptotic_rate, report.spectral_radius)
    torch.testing.assert_close(report.rate, report.spectral_norm)
    head, adapter, context = net.backbone[1], net.adapters["0"], net.context.map  # type: ignore[index]
    layers = [head.weight, adapter.up.weight, adapter.down.weight, context.weight]
    product = torch.stack([torch.linalg.matrix_norm(w, ord=2) for w in layers]).prod()
    assert report.certified is not None
    torch.testing.assert_close(report.certified, product.detach().expand(5), rtol=1e-10, atol=0)
    y = net.refine(x, steps=0).output
    exact = torch.linalg.solve(torch.eye(3).double() - matrix, (net.refine(x, steps=1).output - y @ matrix.mT).mT).mT
    torch.testing.assert_close(report.fixed_point, exact.detach(), rtol=0, atol=1e-10)
    assert (report.status == cbl.Status.converged).all()


@pytest.mark.parametrize("exact_up_to", [256, 1])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_a_context_detached_in_training_is_no_other_map(alpha: float, exact_up_to: int) -> None:
    net, x, _ = linear_loop(alpha=alpha)
    expected = cbl.contraction(net, x, exact_up_to=exact_up_to)
    net.context.detach = True
    report = cbl.contraction(net, x, exact_up_to=exact_up_to)
    torch.testing.assert_close(report.spectral_norm, expected.spectral_norm)
    torch.testing.assert_close(report.asymptotic_rate, expected.asymptotic_rate)
    assert (report.spectral_norm > 0.01).all()


@pytest.mark.parametrize("alpha", [0.3, 0.7])
def test_damping_in_the_states(alpha: float) -> None:
    """h_{t+1} = alpha h_t + (1 - alpha) F(h_t), and the same rates as Picard's damping of the map of y."""
    net, x, matrix = linear_loop(alpha=alpha)
    report = cbl.contraction(net, x)
    eigenvalues = torch.linalg.eigvals(matrix)
    rate = (alpha + (1 - alpha) * eigenvalues).abs().max().clamp(min=alpha)
    assert (report.space, report.size, report.alpha) == ("h", 6, alpha)
    torch.testing.assert_close(report.asymptotic_rate, rate.expand(5), rtol=1e-10, atol=0)
    torch.testing.assert_close(report.rate, alpha + (1 - alpha) * report.spectral_norm)
    picard, _, _ = linear_loop(solver=Picard(damping=alpha))
    other = cbl.contraction(picard, x)
    assert (other.space, other.alpha) == ("y", pytest.approx(alpha))
    expected = (alpha + (1 - alpha) * eigenvalues).abs().max()
    torch.testing.assert_close(other.asymptotic_rate, expected.expand(5), rtol=1e-10, atol=0)


def test_the_measured_rate_is_the_predicted_one() -> None:
    net, x, _ = linear_loop(alpha=0.5)
    report = cbl.contraction(net, x, steps=60)
    torch.testing.assert_close(report.measured_rate, report.asymptotic_rate, rtol=0.03, atol=0)
    assert (report.lengths[1:] <= report.lengths[:-1] * report.rate + 1e-12).all()


LOOPS: dict[str, dict[str, object]] = {
    "film": {"adapter": "film"},
    "gate": {"adapter": "gate"},
    "concat": {"adapter": "concat"},
    "additive": {"adapter": "additive"},
    "two sites": {"adapter": "additive", "sites": ["block2", "block3"]},
    "probabilities": {"adapter": "film", "context": cbl.Context(dim=3, source="probs"), "sites": "block2"},
    "a submodule": {"adapter": "additive", "context": cbl.Context(dim=3, source="fc1")},
    "alpha": {"adapter": "film", "alpha": 0.4},
    "per step": {"adapter": "additive", "step_norm": "per_step"},
}


@pytest.mark.parametrize("kind", LOOPS)
def test_norm_radius_and_certificate_stand_in_their_order(kind: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16)
    backbone = StandardCNN(num_classes=5, width=2, image_size=16)
    options = {"sites": "block3", "step_norm": "frozen", **LOOPS[kind]}
    net = awaken(cbl.ContextLoop(backbone, example=x, **options))  # type: ignore[arg-type]
    for _ in range(3):
        net(2 * x + 1)  # in train mode: statistics other than those of the start
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = cbl.contraction(net, x, steps=30)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert report.certified is not None, report.reason
    assert report.certified.shape == report.spectral_norm.shape == report.rate.shape == (4,)
    assert (report.spectral_radius <= report.spectral_norm * (1 + 1e-4)).all()
    assert (report.spectral_norm <= report.certified).all()
    assert (report.spectral_norm > 0).all()
    assert (report.certified <= 1e4 * report.spectral_norm).all(), "the bound is idle"
    for i in range(4):
        alone = cbl.contraction(net, x[i : i + 1], steps=30)
        for name in ("spectral_norm", "spectral_radius", "certified"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(report, name)[i], rtol=2e-3, atol=1e-5)


def test_no_two_states_are_further_apart_after_a_step_than_certified() -> None:
    """The certificate is for all states: pairs far from the fixed point, and near each other."""
    from torchcbl.backbone.calls import Call
    from torchcbl.theory.space import opened

    torch.manual_seed(0)
    x = torch.randn(4, 3, 16, 16).double()
    net = awaken(cbl.ContextLoop(StandardCNN(5, width=2, image_size=16).double(), "block3", x, step_norm="frozen"))
    certified = cbl.contraction(net, x, steps=5).certified
    assert certified is not None
    with opened(net, Call((x,))) as space, torch.no_grad():
        for scale in (0.01, 1.0, 100.0):
            for near in (1e-4, 1.0):
                s = scale * torch.randn_like(space.start)
                t = s + near * scale * torch.randn_like(s)
                moved = (space.undamped(s) - space.undamped(t)).norm(dim=1)
                assert (moved <= certified * (s - t).norm(dim=1)).all()


def test_large_states_take_krylov_methods() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 3, 8, 8).double()
    net = awaken(
        cbl.ContextLoop(StandardCNN(5, width=2, image_size=8).double(), "block1", x, alpha=0.5, step_norm="frozen")
    )
    whole, part = cbl.contraction(net, x), cbl.contraction(net, x, exact_up_to=5, iterations=12)
    assert whole.exact
    assert not part.exact
    torch.testing.assert_close(part.spectral_norm, whole.spectral_norm, rtol=1e-6, atol=0)
    torch.testing.assert_close(part.asymptotic_rate, whole.asymptotic_rate, rtol=1e-6, atol=0)


class Louder(Adapter):
    """Feeds the mean of z back, many times over."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + 1e3 * z.mean(dim=-1)[:, None, None, None]


REASONS = {
    "attention": ({"adapter": "attention"}, "no bound is known for the Attention at 'block1'"),
    "own": ({"adapter": Louder}, "no bound is known for the Louder at 'block1'"),
    "film above": (
        {"adapter": "film", "sites": ["block1", "block2"]},
        "Film at 'block2' multiplies h by a function of z, and nothing bounds h",
    ),
    "literal": ({"schedule": "literal"}, "schedule='literal' hidden states go from step to step"),
    "synchronous": (
        {"schedule": "synchronous", "sites": ["block1", "block2"], "adapter": "additive"},
        "schedule='synch",
    ),
    "replayed": ({"cut": "replayed"}, "torch.fx does not show what the backbone computes"),
    "gauss-seidel": (
        {"alpha": 0.5, "sites": ["block1", "block2"], "adapter": "additive"},
        "computes each site from the",
    ),
}


@pytest.mark.parametrize("kind", REASONS)
def test_what_cannot_be_certified_says_why(kind: str) -> None:
    options, reason = REASONS[kind]
    x = torch.randn(4, 3, 8, 8)
    settings = {"sites": "block1", "step_norm": "frozen", **options}
    net = awaken(cbl.ContextLoop(ResidualCnn(), example=x, **settings))  # type: ignore[arg-type]
    report = cbl.contraction(net, x, steps=5)
    assert report.certified is None
    assert report.certified_rate is None
    assert report.error_bound() is None
    assert reason in report.reason
    assert f"certified bound on gamma: none, {report.reason}" in str(report)
    assert torch.equal(report.spectral_norm.isnan(), report.status != cbl.Status.converged)
    assert report.lengths.isfinite().all()


def test_several_sites_with_alpha_are_told_by_their_own_steps() -> None:
    """Each site is computed from the damped one below: the rate is none of Eq. 11's, and is measured all the same."""
    x = torch.randn(4, 3, 8, 8).double()
    net = cbl.ContextLoop(
        ResidualCnn().double(), ["block1", "block2"], x, adapter="additive", alpha=0.5, step_norm="frozen"
    )
    report = cbl.contraction(awaken(net), x, steps=80)
    torch.testing.assert_close(report.measured_rate, report.asymptotic_rate, rtol=0.1, atol=0)


def test_a_loop_that_runs_away_is_measured_where_its_fixed_point_is() -> None:
    net, x, matrix = linear_loop()
    with torch.no_grad():
        net.context.map.weight.mul_(-6.0 / torch.linalg.eigvals(matrix).abs().max())
    report = cbl.contraction(net, x, steps=40)
    assert (report.lengths[-1] > 1e6 * report.lengths[0]).all()
    assert (report.status == cbl.Status.converged).all()
    assert (report.spectral_radius > 1).all()
    torch.testing.assert_close(net.refine(x, steps=9, solver="newton").output, report.fixed_point, rtol=0, atol=1e-8)


class Skipping(nn.Module):
    """A skip leads past the upper site, so that a synchronous step reads older states than those it hands on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        return self.head(self.b(a) + a)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 0.4}, {"alpha": 0.2, "solver": Picard(0.3)}])
def test_a_loop_that_is_no_plain_damping_is_measured_as_it_runs(options: dict[str, object]) -> None:
    torch.manual_seed(2)
    x = torch.randn(3, 4).double()
    net = awaken(cbl.ContextLoop(Skipping().double(), ["a", "b"], x, "additive", schedule="synchronous", **options))  # type: ignore[arg-type]
    with torch.no_grad():
        net.context.map.weight.mul_(2.0)  # type: ignore[operator,union-attr]
    report = cbl.contraction(net, x, steps=200)
    moved = net.refine(x, steps=200, halting=Never()).path.moved
    true = (moved[-1] / moved[-11]) ** 0.1
    assert report.certified is None
    assert report.fixed_point.shape == (3, 10)
    torch.testing.assert_close(report.asymptotic_rate, true, rtol=1e-3, atol=0)


def test_damping_of_hidden_states_by_the_solver_is_no_iteration_of_them() -> None:
    net, x, _ = linear_loop(alpha=0.3, solver=Picard(0.5))
    report = cbl.contraction(net, x)
    assert report.certified is None
    assert "damps the context besides the hidden states" in report.reason


def test_hidden_states_of_fewer_numbers_than_y_have_no_kernel() -> None:
    torch.manual_seed(0)
    backbone, x = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 5)).double(), torch.randn(3, 4).double()
    net = awaken(cbl.ContextLoop(backbone, "0", x, "additive", alpha=0.5, context=cbl.Context(dim=16)))
    report = cbl.contraction(net, x)
    assert report.eigenvalues.shape == (3, 2)
    assert (report.asymptotic_rate != 0.5).all()


def test_strong_damping_hides_no_residual() -> None:
    net, x, _ = linear_loop(alpha=0.999)
    exact = cbl.contraction(net, x).fixed_point
    found = cbl.contraction(net.float(), x.float()).fixed_point
    assert float((found - exact).norm() / exact.norm()) < 2e-6


@pytest.mark.parametrize("adapter", ["film", "gate", "additive"])
def test_a_sample_that_is_not_finite_is_told_apart(adapter: str) -> None:
    torch.manual_seed(0)
    backbone, x = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 3)), torch.randn(4, 4)
    net = awaken(cbl.ContextLoop(backbone, "0", x, adapter))
    x[2] = torch.nan
    report, others = cbl.contraction(net, x, steps=5), cbl.contraction(net, x[[0, 1, 3]], steps=5)
    assert report.certified is not None
    assert others.certified is not None
    torch.testing.assert_close(report.certified[[0, 1, 3]], others.certified)
    assert report.spectral_norm.isnan().tolist() == [False, False, True, False]
    backbone[1].weight.data[0, 0] = torch.nan
    assert cbl.contraction(net, x, steps=2).reason == "a weight is not finite ('1'): put the sites above it"


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_no_iterate_is_kept(alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    traces: list[Trace] = []

    def noted(*args: object, **options: object) -> Trace:
        traces.append(iterate(*args, **options))  # type: ignore[arg-type]
        return traces[-1]

    monkeypatch.setattr("torchcbl.theory.contraction.iterate", noted)
    net, x, _ = linear_loop(alpha=alpha)
    cbl.contraction(net, x, steps=20)
    assert [len(trace.outputs) for trace in traces] == [1, 1]
    assert len(traces[0].moved) == 20


def test_a_report_is_printed_wherever_its_numbers_are() -> None:
    net, x, _ = linear_loop()
    report = cbl.contraction(net, x)
    with torch.device("meta"):  # a default that is not the report's
        assert "certified" in str(report)


def test_inference_mode() -> None:
    net, x, _ = linear_loop()
    expected = cbl.contraction(net, x)
    with torch.inference_mode():
        found = cbl.contraction(net, x.clone())
    torch.testing.assert_close(found.spectral_norm, expected.spectral_norm)


def test_numbers_are_checked() -> None:
    net, x, _ = linear_loop()
    with pytest.raises(ValueError, match="contraction's steps must be at least 1, got 0"):
        cbl.contraction(net, x, steps=0)
    with pytest.raises(TypeError, match="contraction's iterations must be a whole number"):
        cbl.contraction(net, x, iterations=1.5)  # type: ignore[arg-type]
    text = str(cbl.contraction(net, x, steps=1))
    assert "measured rate: unknown" in text
    assert "state y, N = 3, whole Jacobian; fixed point found for 5 of 5 samples" in text
