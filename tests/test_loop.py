"""ContextLoop: arguments, contexts, calls of other forms, compilation, and errors that explain themselves."""

from __future__ import annotations

import copy
import functools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

import torchcbl as cbl
from backbones import CASES, BranchingCnn, Mlp, ResidualCnn
from torchcbl import audit
from torchcbl.adapters import Film, Gate
from torchcbl.backbone.calls import Call

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def loop(backbone: nn.Module | None = None, sites: str | list[str] = "*", example: Tensor = X, **options: object):
    if backbone is None:
        backbone, sites = Mlp(), ["first", "second"]
    return cbl.ContextLoop(backbone, sites, example, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
        ({"steps": 1.5}, TypeError, "steps must be a whole number, got 1.5"),
        ({"steps": True}, TypeError, "steps must be a whole number, got True"),
        ({"alpha": 1.2}, ValueError, r"alpha must lie in \[0, 1\], got 1.2"),
        ({"alpha": float("nan")}, ValueError, r"alpha must lie in \[0, 1\], got nan"),
        ({"alpha": "half"}, TypeError, "alpha must be a number"),
        ({"schedule": "both"}, ValueError, "schedule must be one of"),
        ({"step_norm": "none"}, ValueError, "step_norm must be one of 'per_step', 'shared', 'frozen'"),
        ({"cut": "sliced"}, ValueError, "cut must be 'auto', 'traced' or 'replayed', got 'sliced'"),
        ({"adapter": "filn"}, ValueError, "adapter 'filn' is unknown: did you mean 'film'"),
        ({"adapter": 3}, TypeError, "adapter must be a name, a module, a class"),
        ({"adapter": nn.Identity()}, ValueError, "one Identity was given for 2 sites"),
        ({"adapter": {"*": nn.Identity()}}, ValueError, "one Identity was given for 2 sites"),
        ({"adapter": {"first": "film"}}, ValueError, "adapter gives nothing for site 'second'"),
        ({"adapter": {"third": "film"}}, ValueError, "adapter names site 'third', which is not among the sites"),
        ({"adapter": lambda site, dim: "film"}, TypeError, "the adapter factory returned str for site 'first'"),
        (
            {"context": cbl.Context(source="hed")},
            ValueError,
            "context source 'hed' not found in Mlp: did you mean 'head'",
        ),
        ({"channel_dim": 2}, ValueError, "channel_dim=2 is no axis of site 'first'"),
        ({"channel_dim": 0}, ValueError, "channel_dim=0 is no axis of site 'first'"),
    ],
)
def test_bad_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loop(**options)


def test_bad_steps_at_call_time() -> None:
    net = loop()
    with pytest.raises(ValueError, match="steps must be at least 0, got -2"):
        net.refine(X, steps=-2)
    with pytest.raises(TypeError, match=r"steps must be a whole number, got 2\.0"):
        net.refine(X, steps=2.0)


def test_steps_cannot_be_set() -> None:
    net = loop(steps=3)
    with pytest.raises(AttributeError, match=r"steps of a loop cannot be set.*pass net.refine\(..., steps=7\)"):
        net.steps = 7
    assert net.steps == 3
    assert len(net.refine(X).outputs) == 4


def test_one_module_may_serve_the_one_site_that_a_glob_is_left_with() -> None:
    own = Film(loop().sites[0], 64)
    net = loop(adapter={"*": own, "second": "gate"})
    assert net.adapters["first"] is own


def test_bad_contexts() -> None:
    with pytest.raises(ValueError, match=r"Context\.dim must be at least 1, got 0"):
        cbl.Context(dim=0)
    with pytest.raises(TypeError, match=r"Context\.dim must be a whole number, got 2\.5"):
        cbl.Context(dim=2.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Context\.source must be"):
        cbl.Context(source=None)  # type: ignore[arg-type]


def test_bad_gate_scale() -> None:
    with pytest.raises(ValueError, match="Gate's scale must be positive, got 0"):
        loop(adapter=functools.partial(Gate, scale=0.0))


def test_backbone_must_be_a_module() -> None:
    with pytest.raises(TypeError, match="backbone must be an nn.Module, got function"):
        cbl.ContextLoop(lambda x: x, "first", X)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        ([[1.0] * 6], ValueError, "example holds no tensor"),
        ("a batch", TypeError, "example must be a tensor, a tuple of positional arguments or a dict"),
        (None, TypeError, "example must be a tensor"),
        ({}, ValueError, "example holds no tensor"),
    ],
)
def test_bad_examples(example: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        loop(Mlp(), ["first"], example)  # type: ignore[arg-type]


def test_dead_adapters_are_an_error_that_explains_eq_8() -> None:
    with pytest.raises(ValueError, match=r"'first' cannot move the output y_2: .*Eq\. 8 recomputes.*allow_dead=True"):
        loop(schedule="literal")
    assert loop(schedule="literal", allow_dead=True).audit().dead == ("first",)


def test_building_perturbs_only_adapters_that_no_gradient_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    perturbed: list[nn.Module] = []
    real = audit._perturbed
    monkeypatch.setattr(audit, "_perturbed", lambda adapter: perturbed.append(adapter) or real(adapter))
    net = loop()
    assert perturbed == []
    assert all(found.change > 0 for found in net.audit().adapters)
    assert perturbed == list(net.adapters.values())
    perturbed.clear()
    net = loop(schedule="literal", allow_dead=True)
    assert perturbed[0] is net.adapters["first"]
    assert net.adapters["second"] not in perturbed


def test_too_few_synchronous_steps_are_dead() -> None:
    with pytest.raises(ValueError, match="climbs one site per step.*needs steps >= 2, got 1"):
        loop(schedule="synchronous", steps=1)
    assert loop(schedule="synchronous", steps=2).audit().dead == ()


def test_alpha_one_is_dead() -> None:
    with pytest.raises(ValueError, match="alpha = 1 keeps the old state whole"):
        loop(alpha=1.0)


class SideBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(6, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.unused(x)
        return self.used(x)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
def test_a_site_off_the_path_is_dead(cut: str) -> None:
    with pytest.raises(ValueError, match="'unused' cannot move the output.*no path leads"):
        loop(SideBranch(), ["unused", "used"], cut=cut)


@pytest.mark.parametrize("source", ["logits", "probs", "second"])
@pytest.mark.parametrize("detach", [False, True])
def test_context_sources(source: str, detach: bool) -> None:
    net = loop(context=cbl.Context(dim=3, source=source, detach=detach))
    with torch.no_grad():
        for p in net.adapters.parameters():
            p.add_(0.1 * torch.randn_like(p))
    backbone: Mlp = net.backbone  # type: ignore[assignment]
    seen = {"logits": lambda: backbone(X), "probs": lambda: backbone(X).softmax(-1)}
    expected = seen.get(source, lambda: backbone.second(torch.tanh(backbone.first(X))))()
    z: list[Tensor] = []
    net.context.register_forward_hook(lambda module, args, output: z.append(output))
    outputs = net.refine(X).outputs
    torch.testing.assert_close(z[0], net.context.map(expected))
    assert not torch.equal(z[0], z[1]), "the context does not follow the output"
    # with detach the gradient of y_1 reaches the backbone only through the replayed part
    grads = torch.autograd.grad(outputs[1].sum(), backbone.head.weight)[0]
    other = loop(context=cbl.Context(dim=3, source=source, detach=not detach))
    other.load_state_dict(net.state_dict())
    grads_other = torch.autograd.grad(other.refine(X).outputs[1].sum(), other.backbone.head.weight)[0]
    assert torch.equal(grads, grads_other) == (source == "second")  # which does not pass through the head


def test_context_from_a_feature_map_takes_the_mean_over_space() -> None:
    net = loop(ResidualCnn(), ["stem"], IMAGES, context=cbl.Context(dim=3, source="block2")).eval()
    assert net.context.map.in_features == 6
    features: list[Tensor] = []
    net.backbone.block2.register_forward_hook(lambda module, args, output: features.append(output))
    net = loop(net.backbone, ["stem"], IMAGES, context=cbl.Context(dim=3, source="block2")).eval()
    features.clear()
    z: list[Tensor] = []
    net.context.register_forward_hook(lambda module, args, output: z.append(output))
    net(IMAGES)
    torch.testing.assert_close(z[0], net.context.map(features[0].mean((2, 3))))


def test_a_context_map_of_ones_own() -> None:
    deep = cbl.Context(
        dim=3, map=lambda features, dim: nn.Sequential(nn.Linear(features, 7), nn.Tanh(), nn.Linear(7, dim))
    )
    assert loop(context=deep).audit().added_parameters == (4 * 7 + 7 + 7 * 3 + 3) + 2 * (3 + 1) * 16


def test_adapters_by_site_and_by_glob() -> None:
    net = loop(adapter={"first": "gate", "s*": functools.partial(Film, identity=False)})
    assert [type(module) for module in net.adapters.values()] == [Gate, Film]
    assert not torch.equal(net(X), net.backbone(X))


def test_gate_follows_its_equation() -> None:
    gate = Gate(cbl.Site("a", (2, 3, 4, 4), 1), 5, scale=1.0, identity=False)
    h, z = torch.randn(2, 3, 4, 4), torch.randn(2, 5)
    torch.testing.assert_close(gate(h, z), h * torch.sigmoid(gate.linear(z))[:, :, None, None])


def test_film_follows_its_equation() -> None:
    film = Film(cbl.Site("a", (2, 4, 3), 2), 5, identity=False)
    h, z = torch.randn(2, 4, 3), torch.randn(2, 5)
    gamma, beta = film.linear(z)[:, None, :3], film.linear(z)[:, None, 3:]
    torch.testing.assert_close(film(h, z), (1 + gamma) * h + beta)
    with pytest.raises(
        ValueError, match=r"the context has positions \(7,\), but the hidden states of site 'a' have shape"
    ):
        Film(cbl.Site("a", (2, 3, 4, 4), 1), 5)(torch.randn(2, 3, 4, 4), torch.randn(2, 7, 5))


class Masked(nn.Module):
    """Optional and keyword arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor | None = None, *, negate: bool = False) -> Tensor:
        h = self.first(x)
        if mask is not None:
            h = h * mask
        if negate:
            h = -h
        return self.head(torch.tanh(h))


def test_calls_of_another_form_than_the_example() -> None:
    net = loop(Masked(), ["first"], X, adapter=functools.partial(Film, identity=False))
    mask = torch.rand(4, 8)
    plain, masked = net.backbone(X), net.backbone(X, mask)
    assert torch.equal(net.refine(X).outputs[0], plain)
    for r in (net.refine(X, mask), net.refine(X, mask=mask), net.refine(x=X, mask=mask)):
        assert torch.equal(r.outputs[0], masked)
        assert not torch.equal(r.output, net(X))
    assert torch.equal(net.refine(X, negate=True).outputs[0], net.backbone(X, negate=True))
    by_hand = net.refine(X * 1.0, mask)
    assert torch.equal(by_hand.output, net.refine(X, mask).output)


def test_examples_by_keyword_and_position() -> None:
    for example in ((X,), {"x": X}, {"x": X, "negate": True}, (X, torch.rand(4, 8))):
        net = cbl.ContextLoop(Masked(), "first", example)
        expected = net.backbone(**example) if isinstance(example, dict) else net.backbone(*example)
        got = net(**example) if isinstance(example, dict) else net(*example)
        assert torch.equal(got, expected)


class Forgetful(nn.Module):
    """Keeps state between calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.calls = nn.Linear(6, 8), nn.Linear(8, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.first(x)) + self.calls


def test_a_backbone_with_state_is_refused() -> None:
    with pytest.raises(ValueError, match="gives two different outputs for the same example"):
        loop(Forgetful(), ["first"])


def test_an_untraceable_backbone_says_why() -> None:
    with pytest.raises(ValueError, match=r"BranchingCnn cannot be traced: .*Leave cut at 'auto'"):
        loop(BranchingCnn(), ["low"], IMAGES, cut="traced")
    assert "replayed: " in repr(loop(BranchingCnn(), ["low"], IMAGES))


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "no tensor"


class Whole(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.long()


@pytest.mark.parametrize(
    ("last", "options", "error", "message"),
    [
        (Nothing(), {}, TypeError, r"Sequential returns str without a floating-point tensor \(B, K\)"),
        (Whole(), {}, ValueError, r"output has shape \(4, 6\) and dtype torch.int64, expected floating point"),
        (
            nn.Identity(),
            {"output": "logits"},
            ValueError,
            "output='logits' is not in the Tensor that Sequential returns",
        ),
    ],
)
def test_outputs_that_are_not_logits(
    last: nn.Module, options: dict[str, str], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        loop(nn.Sequential(nn.Linear(6, 6), last), ["0"], **options)


def test_it_moves_and_casts() -> None:
    net = loop(ResidualCnn(), ["block1"], IMAGES).double().eval()
    assert net(IMAGES.double()).dtype == torch.float64
    half = loop(ResidualCnn().double(), ["block1"], IMAGES.double())
    assert {p.dtype for p in half.parameters()} == {torch.float64}


def test_inference_mode_and_autocast() -> None:
    net = loop(ResidualCnn(), ["block1"], IMAGES).eval()
    with torch.inference_mode():
        assert torch.equal(net(IMAGES), net.backbone(IMAGES))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(net.refine(IMAGES).outputs[0], net.backbone(IMAGES))


def test_export_of_a_traced_cut() -> None:
    net = loop(adapter=functools.partial(Film, identity=False)).eval()
    program = torch.export.export(net, (X,), dynamic_shapes={"args": ({0: torch.export.Dim.DYNAMIC},)})
    other = torch.randn(7, 6)
    torch.testing.assert_close(program.module()(other), net(other))


def test_learning_moves_every_part() -> None:
    net = loop(ResidualCnn(), ["stem", "block1", "block2"], IMAGES)
    before = {name: value.clone() for name, value in net.named_parameters()}
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        cbl.refinement_loss(net.refine(IMAGES), torch.arange(4)).backward()
        optimiser.step()
    moved = {name: not torch.equal(value, before[name]) for name, value in net.named_parameters()}
    assert all(moved.values()), [name for name, yes in moved.items() if not yes]


def test_names_are_lazy_and_few() -> None:
    assert len(cbl.__all__) <= 15
    for name in cbl.__all__:
        assert getattr(cbl, name) is not None
    assert callable(cbl.sites), "a submodule hides the function"
    with pytest.raises(AttributeError, match="module 'torchcbl' has no attribute 'Loop'"):
        cbl.Loop  # noqa: B018


def test_replaced_backbone_parts_are_refused() -> None:
    for cut in ("traced", "replayed"):
        net = loop(Mlp(), ["first"], cut=cut)
        net.backbone.head = nn.Linear(8, 4)
        with pytest.raises(RuntimeError, match="submodule 'head' of Mlp was replaced after the loop was built"):
            net(X)


def test_another_backbone_is_refused() -> None:
    for cut in ("traced", "replayed"):
        net = loop(Mlp(), ["first"], cut=cut)
        replica = net._replicate_for_data_parallel()
        replica.backbone = copy.deepcopy(net.backbone)  # as torch.nn.parallel.replicate goes on
        with pytest.raises(RuntimeError, match=r"nn\.DataParallel makes such copies too: take DistributedDataParallel"):
            replica(X)
        net.backbone = torch.compile(net.backbone, backend="eager")
        with pytest.raises(RuntimeError, match=r"net\.backbone is another module than .* take torch\.compile\(net\)"):
            net(X)


def test_a_copy_of_a_compiled_loop_has_weights_of_its_own(tmp_path: Path) -> None:
    net = loop()
    net.compile(backend="eager")
    expected = net(X)
    twin = copy.deepcopy(net)
    averaged = AveragedModel(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    assert torch.equal(twin(X), expected)
    assert torch.equal(averaged(X), expected)
    assert not net(X).any()
    torch.save(twin, tmp_path / "net.pt")
    assert torch.equal(torch.load(tmp_path / "net.pt", weights_only=False)(X), expected)


def test_a_forward_that_is_set_later_is_called() -> None:
    net = loop(ResidualCnn(), ["stem"], IMAGES, adapter=functools.partial(Film, identity=False)).eval()
    assert net.plan.kind == "traced"
    expected, block = net(IMAGES), net.backbone.block1
    own, shapes = block.forward, []

    def counted(x: Tensor) -> Tensor:  # as accelerate's add_hook_to_module does
        shapes.append(x.shape)
        return own(x)

    block.forward = counted
    assert torch.equal(net(IMAGES), expected)
    assert len(shapes) == 3, "the forward of a submodule that the trace looks into was passed over"
    with net.cut_for(Call((IMAGES,))).session():  # while another thread is at work
        assert net._cut.has_hooks()
    del block.forward
    with net._replayed.session():
        assert not net._cut.has_hooks()


def test_hooks_that_come_later_are_called() -> None:
    net = loop(ResidualCnn(), ["stem"], IMAGES, adapter=functools.partial(Film, identity=False)).eval()
    assert net.plan.kind == "traced"
    expected = net(IMAGES)
    shapes: list[torch.Size] = []
    handle = net.backbone.block1.register_forward_hook(lambda module, args, output: shapes.append(output.shape))
    assert torch.equal(net(IMAGES), expected)
    assert len(shapes) == 3, "the hook of a submodule that the trace looks into was passed over"
    assert torch.equal(copy.deepcopy(net)(IMAGES), expected)
    handle.remove()


def test_sites_of_every_case_are_listed() -> None:
    for case in CASES.values():
        assert set(case.sites) <= set(cbl.sites(case.build(), case.example()))


def test_an_example_of_zeros_is_no_reason_to_call_a_gate_dead() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert loop(backbone, ["1"], torch.zeros(2, 3, 8, 8), adapter="gate").audit().dead == ()


def test_a_context_that_says_nothing_or_not_a_number_is_refused() -> None:
    binary = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.raises(ValueError, match=r"softmax over one class alone.*\(4, 1\).*Use source='logits'"):
        loop(binary, ["1"], context=cbl.Context(source="probs"))
    assert loop(binary, ["1"]).audit().dead == ()

    class Masked(Mlp):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).masked_fill(torch.arange(4) == 2, -torch.inf)

    with pytest.raises(ValueError, match=r"y is minus infinity for some classes.*Context\(source='probs'\)"):
        loop(Masked(), ["first"])
    net = loop(Masked(), ["first"], context=cbl.Context(source="probs"))
    assert torch.equal(net(X), net.backbone(X))


class OtherDefaultDevice(TorchFunctionMode):
    """As `torch.set_default_device("cuda")`: what is drawn without a named device is not for a generator of the CPU."""

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        kwargs = kwargs or {}
        if kwargs.get("generator") is not None and kwargs.get("device") is None:
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return func(*args, **kwargs)


def test_another_default_device_draws_none_of_the_noise() -> None:
    x = torch.randn(2, 5, 6)  # one y per position, so that causality is looked at too
    with OtherDefaultDevice():
        net = cbl.ContextLoop(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), "1", x)
        assert net.audit().dead == ()
