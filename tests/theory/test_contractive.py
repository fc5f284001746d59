"""Loops that contract by construction: the bound holds, Theorem 3.1 with it, and what cannot be bounded is refused."""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

import torchcbl as cbl
from subject import awaken
from torchcbl.adapters.bounded import BoundedLinear, bounds_kept
from torchcbl.backbone.calls import Call
from torchcbl.lab.networks import StandardCNN
from torchcbl.solvers import Picard
from torchcbl.theory import jacobian_penalty, posterior_bound
from torchcbl.theory.space import opened


def cnn() -> nn.Module:
    torch.manual_seed(0)
    return StandardCNN(num_classes=5, width=2, image_size=16).double()


class Squashed(nn.Module):
    """A network whose sites are bounded by tanh, with a skip past the second one and an average over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Tanh())
        self.body = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Sigmoid())
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head((self.body(h) + 0.5 * h).mean((2, 3)))


X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)).double()
KINDS: dict[str, tuple[type[nn.Module] | object, dict[str, object]]] = {
    "additive": (cnn, {"sites": "block3", "adapter": "additive"}),
    "concat": (cnn, {"sites": ["block2", "block3"], "adapter": "concat"}),
    "alpha": (cnn, {"sites": "block3", "adapter": "additive", "alpha": 0.4}),
    "probabilities": (cnn, {"sites": "block3", "adapter": "additive", "context": cbl.Context(dim=3, source="probs")}),
    "gates": (Squashed, {"sites": ["stem", "body"], "adapter": "gate"}),
    "gate per position": (
        Squashed,
        {"sites": "stem", "adapter": "gate", "context": cbl.Context(dim=6, source="body", per="position")},
    ),
    "film below": (Squashed, {"sites": ["stem", "body"], "adapter": {"stem": "film", "body": "additive"}}),
    "a submodule": (Squashed, {"sites": "stem", "adapter": "film", "context": cbl.Context(dim=6, source="body")}),
}


def build(kind: str, gamma: float = 0.8, loud: float = 5.0, **more: object) -> cbl.ContextLoop:
    """A contractive loop whose weights would be far too large without it."""
    make, options = KINDS[kind]
    net = cbl.ContextLoop(make().double(), example=X, step_norm="frozen", **options, **more)  # type: ignore[operator,arg-type]
    awaken(net)
    with torch.no_grad():
        for parameter in net.adapter_parameters():
            parameter.mul_(loud)
        for parameter in net.backbone.parameters():
            parameter.mul_(1.3)
    return cbl.make_contractive(net, gamma).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_the_certificate_is_within_gamma(kind: str) -> None:
    for gamma in (0.3, 0.95):
        report = cbl.contraction(build(kind, gamma), X)
        assert report.certified is not None, report.reason
        assert (report.certified <= gamma).all()
        assert (report.spectral_norm <= report.certified).all()
        assert (report.spectral_norm > 0).all(), "nothing is fed back"
    before = cbl.contraction(awaken(cbl.ContextLoop(cnn(), "block3", X, "additive", step_norm="frozen")), X)
    assert before.certified is not None
    assert (before.certified > 1).all(), "there was nothing to bound"


@pytest.mark.parametrize("kind", KINDS)
def test_theorem_3_1(kind: str) -> None:
    """Fifty starting points of every size for each sample: one limit, and errors below both of Banach's bounds."""
    net = build(kind, gamma=0.8)
    report = cbl.contraction(net, X)
    q = report.alpha + (1 - report.alpha) * 0.8
    limit = report.fixed_point[:2].repeat_interleave(50, dim=0)
    with opened(net, Call((X[:2].repeat_interleave(50, dim=0),))) as space, torch.no_grad():
        scale = 10.0 ** (torch.arange(100) % 5 - 1).double()
        s = scale[:, None] * torch.randn(space.start.shape, dtype=torch.float64)
        assert float((s[0] - s[1]).norm()) > 0.1
        first = (space.step(s) - s).norm(dim=1)
        for step in range(1, 200):
            new = space.step(s)
            length, error = (new - s).norm(dim=1), (new - limit).norm(dim=1)
            slack = 1e-10 * (1 + scale)
            assert (error <= posterior_bound(length, torch.full_like(length, q)) + slack).all()
            assert (error <= q**step / (1 - q) * first + slack).all()
            s = new
        torch.testing.assert_close(s, limit, rtol=0, atol=1e-7)


def test_the_bound_of_a_refinement() -> None:
    """What `error_bound` says of the loop as it runs, and `posterior_bound` of any solver's residual."""
    net = build("additive")
    report = cbl.contraction(net, X, steps=30)
    bound = report.error_bound()
    assert bound is not None
    assert (report.errors <= bound + 1e-12).all()
    r = net.refine(X, steps=3, solver="anderson")
    error = (r.output - report.fixed_point).norm(dim=1)
    assert report.certified_rate is not None
    assert (error <= posterior_bound(r.path.moved[-1], report.certified_rate) + 1e-12).all()
    advice = report.recommend(1e-3)
    assert advice.certified_steps is not None
    assert advice.alpha is not None
    settled = net.refine(X, steps=advice.certified_steps, solver=Picard(advice.alpha))
    errors = (settled.output - report.fixed_point).norm(dim=1)
    assert (errors <= 1e-3 * report.fixed_point.norm(dim=1)).all()


def test_weights_within_their_limits_stay_as_they_are() -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(cnn(), "block3", X, "additive", step_norm="frozen").eval()
    names = list(net.state_dict())
    before = net(X)
    assert cbl.make_contractive(net, 0.9) is net
    assert list(net.state_dict()) == names
    assert torch.equal(net(X), before)


@pytest.mark.parametrize("kind", ["concat", "gates"])
def test_training_the_backbone_keeps_the_bound(kind: str) -> None:
    net = build(kind, gamma=0.6).train()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.01)
    target = torch.arange(4)
    limits, losses = [], []
    for _ in range(5):
        loss = cbl.refinement_loss(net.refine(X), target)
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.adapter_parameters())
        optimiser.step()
        losses.append(float(loss))
        limits.append([m.limit for m in net.modules() if isinstance(m, BoundedLinear)])
        report = cbl.contraction(net, X)
        assert report.certified is not None
        assert (report.certified <= 0.6).all()
    assert limits[0] != limits[-1], "the backbone has changed and the limits have not"
    assert losses[-1] < losses[0]


LARGE = torch.randn(2, 3, 40, 40).double()


def test_other_shapes_of_input_keep_the_bound() -> None:
    net = build("gates")
    for x in (X, LARGE, X):
        report = cbl.contraction(net, x)
        assert report.certified is not None
        assert (report.certified <= 0.8).all()
    limits = {}
    for name, x in (("small", X), ("large", LARGE)):
        net(x)
        limits[name] = [m.limit for m in net.adapters.modules() if isinstance(m, BoundedLinear)]
    assert limits["small"] != limits["large"]


def test_a_call_keeps_its_limits_whatever_shapes_come_meanwhile() -> None:
    net = build("gates")
    with torch.no_grad(), net.mapped(Call((X,))) as g:
        s = g.prepare()
        expected = g(s).value
        with ThreadPoolExecutor(1) as pool:
            pool.submit(net, LARGE).result()
        net(LARGE)
        assert torch.equal(g(s).value, expected)


def test_a_step_that_is_computed_again_keeps_its_limits() -> None:
    net = build("gates")
    expected = gradients(net, "bptt")
    net.zero_grad()
    loss = net.refine(X, gradient="checkpointed").output.square().sum()
    net(LARGE)
    loss.backward()
    for one, parameter in zip(expected, net.adapter_parameters(), strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, one, rtol=1e-12, atol=0)


def test_dropout_in_training_counts() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)).double()
    x = torch.randn(5, 4).double()
    net = cbl.make_contractive(awaken(cbl.ContextLoop(backbone, "0", x, "additive")), 0.5)
    limits = []
    for mode in (True, False):
        net.train(mode)(x)
        limits.append(net.adapters["0"].up.limit)  # type: ignore[union-attr]
    assert limits[0] == pytest.approx(limits[1] / 2**0.5)
    backbone[1].p = 0.75  # type: ignore[assignment]
    net.train()(x)
    assert net.adapters["0"].up.limit == pytest.approx(limits[1] / 2)  # type: ignore[union-attr]


def limits_of(net: cbl.ContextLoop) -> list[float]:
    return [module.limit for module in net.adapters.modules() if isinstance(module, BoundedLinear)]


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}], ids=["foreach", "fused"])
def test_steps_that_versions_do_not_show_are_followed(options: dict[str, bool]) -> None:
    net = build("additive").train()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05, **options)  # type: ignore[arg-type]
    net(X).sum().backward()
    before = limits_of(net)
    optimiser.step()
    net(X)
    assert limits_of(net) != before


def test_a_variance_that_a_sum_would_hide_is_followed() -> None:
    net = build("concat").float()
    norm = next(m for m in net.backbone.block3.modules() if isinstance(m, nn.BatchNorm2d))  # type: ignore[union-attr]
    for small in (1e-2, 1e-5):
        with torch.no_grad():
            assert norm.running_var is not None
            norm.running_var.fill_(1e6)[0] = small
        net(X.float())
        report = cbl.contraction(net, X.float(), steps=2)
        assert report.certified is not None
        assert (report.certified <= 0.8).all()


def test_batch_norm_that_starts_to_train_is_refused() -> None:
    torch.manual_seed(0)
    net = cbl.make_contractive(cbl.ContextLoop(cnn(), "block2", X, "additive", step_norm="shared").eval())
    net(X)
    net.backbone.train()
    with pytest.raises(ValueError, match="batch norm with step_norm='shared' makes each step another"):
        net(X)
    net.freeze_backbone().train()(X)


def test_batch_norm_that_runs_once_may_train() -> None:
    net = cbl.make_contractive(cbl.ContextLoop(cnn(), "block2", X, "additive", step_norm="shared").eval())
    net.backbone.block1.train()  # type: ignore[union-attr]
    net(X)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_within_the_bound(dtype: torch.dtype) -> None:
    net = build("concat").to(dtype)
    report = cbl.contraction(net, X.to(dtype), steps=2)
    assert report.certified is not None
    assert (report.certified <= 0.8).all()


def test_copies_pickles_and_saves_keep_it(tmp_path: Path) -> None:
    net = build("concat")
    expected = net(X)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(X), expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.mul_(2.0)
        report = cbl.contraction(twin, X)
        assert report.certified is not None
        assert (report.certified <= 0.8).all()
    assert torch.equal(net(X), expected)
    net.save(tmp_path)
    again = cbl.load(tmp_path, copy.deepcopy(net.backbone)).eval()
    assert again.bound is not None
    assert again.bound.gamma == 0.8
    assert torch.equal(again(X), expected)


def test_compiled_and_exported() -> None:
    net = build("gates")
    expected = net(X)
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(X), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        for parameter in net.backbone.parameters():
            parameter.mul_(2.0)
    torch.testing.assert_close(compiled(X), net(X), rtol=0, atol=1e-12)
    torch.testing.assert_close(net.export().module()(X), net(X), rtol=0, atol=1e-12)


RULES = ("bptt", "checkpointed", "truncated", "phantom", "implicit")


@pytest.fixture
def svds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the functions that were called to find a largest singular value."""
    called: list[str] = []

    def counted(name: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            called.append(name)
            return function(*args, **kwargs)

        return run

    for name in ("matrix_norm", "svd"):
        monkeypatch.setattr(torch.linalg, name, counted(name, getattr(torch.linalg, name)))
    return called


def bounded_layers(net: cbl.ContextLoop) -> list[BoundedLinear]:
    return [module for module in net.modules() if isinstance(module, BoundedLinear) and module.limit < float("inf")]


@pytest.mark.parametrize("trained", [False, True])
def test_the_steps_of_a_call_share_their_norms(svds: list[str], trained: bool) -> None:
    net = build("concat", steps=10)
    net(X)
    svds.clear()
    with torch.set_grad_enabled(trained):
        net(X)
    assert len(svds) == len(bounded_layers(net)) == 5
    net(X)
    assert len(svds) == 10  # and not with those of another call


class _Weight(nn.Module):
    def __init__(self, layer: BoundedLinear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self) -> Tensor:
        return self.layer.bounded_weight()


@pytest.mark.parametrize("kept", [False, True])
def test_forward_mode_goes_through_the_norm(kept: bool) -> None:
    layer = BoundedLinear(nn.Linear(4, 3).double(), 0.1)
    tangent, before = torch.randn(3, 4, dtype=torch.float64), layer.weight.detach()

    def bounded(weight: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(_Weight(layer), {"layer.weight": weight}, ())
        return result

    with bounds_kept() if kept else contextlib.nullcontext(), fwad.dual_level():
        found = fwad.unpack_dual(bounded(fwad.make_dual(before.clone().requires_grad_(), tangent))).tangent
    torch.testing.assert_close(found, torch.func.jvp(bounded, (before,), (tangent,))[1])


def plainly_bounded(layer: BoundedLinear) -> Tensor:
    if layer.limit == float("inf"):
        return layer.weight
    norm = torch.linalg.matrix_norm(layer.weight, ord=2)
    return layer.weight * (layer.limit * (1 - 1e-5) / norm).clamp(max=1.0)


def gradients(net: cbl.ContextLoop, rule: str) -> list[Tensor]:
    net.zero_grad()
    net.refine(X, gradient=rule).output.square().sum().backward()
    return [p.grad for p in net.adapter_parameters() if p.grad is not None]


@pytest.mark.parametrize("rule", RULES)
def test_shared_norms_change_no_gradient(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("concat", steps=6)
    found = gradients(net, rule)
    monkeypatch.setattr(BoundedLinear, "bounded_weight", plainly_bounded)
    expected = gradients(net, rule)
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "weight", [torch.randn(4, 3).double(), 0.1 * torch.randn(3, 4).double(), torch.eye(3).double()]
)
def test_a_bounded_layer_has_its_exact_gradient(weight: Tensor) -> None:
    layer = BoundedLinear(nn.Linear(weight.shape[1], weight.shape[0]).double(), limit=0.9)
    with torch.no_grad():
        layer.weight.copy_(weight)
    x = torch.randn(5, weight.shape[1]).double()

    def apply(w: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(layer, {"weight": w}, x)
        return result

    (found,) = torch.autograd.grad(layer(x).pow(3).sum(), layer.weight)
    expected = torch.nn.functional.linear(x, plainly_bounded(layer), layer.bias).pow(3).sum()
    torch.testing.assert_close(found, torch.autograd.grad(expected, layer.weight)[0])
    if not torch.equal(weight, torch.eye(3)):  # where the norm has a kink
        w = weight.clone().requires_grad_()
        assert torch.autograd.gradcheck(apply, (w,))
        assert torch.autograd.gradgradcheck(apply, (w,))


def _step(net: cbl.ContextLoop) -> None:
    for parameter in net.adapter_parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(list(net.adapter_parameters()), lr=0.1).step()


def _write_past_versions(net: cbl.ContextLoop) -> None:
    for parameter in net.adapter_parameters():
        parameter.data.neg_()


def _load(net: cbl.ContextLoop) -> None:
    added = {name: -0.5 * value for name, value in net.state_dict().items() if name.startswith(("adapters", "context"))}
    net.load_state_dict(added, strict=False)


CHANGES = {"a step": _step, "data": _write_past_versions, "load_state_dict": _load, "to": lambda net: net.float()}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_bounded_anew(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = build("concat")
    with torch.no_grad():
        before = net(X)
        CHANGES[change](net)
        x = X.to(next(net.parameters()).dtype)
        found = net(x)
        monkeypatch.setattr(BoundedLinear, "bounded_weight", plainly_bounded)
        torch.testing.assert_close(found, net(x))
    assert change == "to" or not torch.allclose(before, found, rtol=1e-3)


def test_weights_that_change_within_a_call_are_bounded_anew() -> None:
    net = build("concat")
    layer = net.context.map
    assert isinstance(layer, BoundedLinear)
    with torch.no_grad(), net.mapped(Call((X,))):
        first = layer.bounded_weight()
        assert layer.bounded_weight() is first
        layer.weight.neg_()
        torch.testing.assert_close(layer.bounded_weight(), -first, rtol=1e-12, atol=0)
        layer.limit = 0.1
        assert torch.linalg.matrix_norm(layer.bounded_weight(), ord=2) <= 0.1
    assert layer.bounded_weight() is not layer.bounded_weight()


def test_threads_and_modes_share_nothing() -> None:
    net = build("concat", steps=4)
    expected = net(X)
    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(net, X) for _ in range(8)]
    assert all(torch.equal(future.result(), expected) for future in futures)
    for parameter in net.adapter_parameters():
        parameter.requires_grad_(False)
    with torch.inference_mode():
        net.refine(X, steps=3, solver="newton")  # which differentiates in its midst
        torch.testing.assert_close(net(X), expected)


def test_outputs_of_a_detached_context_can_be_differentiated_one_by_one() -> None:
    make, options = KINDS["concat"]
    net = cbl.ContextLoop(make(), example=X, step_norm="frozen", **options, context=cbl.Context(dim=3, detach=True))  # type: ignore[operator,arg-type]
    awaken(net)
    for output in cbl.make_contractive(net).freeze_backbone().refine(X).outputs[1:]:
        output.sum().backward()


def own_map(features: int, dim: int) -> nn.Module:
    return nn.Sequential(nn.Linear(features, dim))


REFUSED: dict[str, tuple[object, dict[str, object], str]] = {
    "film": (cnn, {"sites": "block3", "adapter": "film"}, "nothing bounds h: use adapter='additive' or 'concat', or a"),
    "film above": (Squashed, {"sites": ["stem", "body"], "adapter": "film"}, "nothing bounds z: .* film at the lowest"),
    "token": (Squashed, {"sites": "stem", "adapter": "attention"}, "no bound is known for the Attention at 'stem'"),
    "alpha": (cnn, {"sites": ["block1", "block3"], "adapter": "additive", "alpha": 0.5}, "alpha > 0 with several"),
    "damped twice": (
        cnn,
        {"sites": "block3", "adapter": "additive", "alpha": 0.5, "solver": Picard(damping=0.2)},
        "damps twice, .*: use one of the two",
    ),
    "literal": (cnn, {"sites": "block3", "adapter": "additive", "schedule": "literal"}, "schedule='literal' hidden"),
    "per step": (cnn, {"sites": "block2", "adapter": "additive", "step_norm": "per_step"}, "'per_step' makes each"),
    "replayed": (cnn, {"sites": "block3", "adapter": "additive", "cut": "replayed"}, "not show.*only a traced cut"),
    "own context": (
        cnn,
        {"sites": "block3", "adapter": "additive", "context": cbl.Context(dim=3, map=own_map)},
        "the context's map is a Sequential",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_bounded_is_refused(kind: str) -> None:
    make, options, message = REFUSED[kind]
    net = cbl.ContextLoop(make().double(), example=X, **{"step_norm": "frozen", **options})  # type: ignore[operator]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        cbl.make_contractive(net)
    assert net.bound is None
    assert not any(isinstance(module, BoundedLinear) for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("part", ["adapters.block3.down", "context.map"])
def test_weights_that_are_computed_are_refused(part: str) -> None:
    net = cbl.ContextLoop(cnn().double(), "block3", X, "additive", step_norm="frozen")
    weight_norm(net.get_submodule(part))
    names = [name for name, _ in net.named_parameters()]
    with pytest.raises(ValueError, match=f"'{part}' computes its weight from other parameters"):
        cbl.make_contractive(net)
    assert net.bound is None
    assert [name for name, _ in net.named_parameters()] == names
    parametrize.remove_parametrizations(net.get_submodule(part), "weight")
    cbl.make_contractive(net)


def test_a_network_is_no_loop() -> None:
    for ask in (cbl.make_contractive, lambda net: cbl.contraction(net, X), lambda net: jacobian_penalty(net, X)):
        with pytest.raises(TypeError, match="needs a ContextLoop, got StandardCNN: build a loop around your network"):
            ask(cnn())  # type: ignore[arg-type, no-untyped-call]


def test_gamma_must_be_below_one() -> None:
    net = cbl.ContextLoop(cnn(), "block3", X, "additive", step_norm="frozen")
    for gamma in (1.0, 0.0, -0.5, True, "0.5"):
        with pytest.raises(ValueError, match=r"gamma must lie in \(0, 1\), got"):
            cbl.make_contractive(net, gamma)  # type: ignore[arg-type]
