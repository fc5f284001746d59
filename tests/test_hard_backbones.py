"""Backbones that are easy to cut wrongly: what a trace loses, what a replay must not repeat, what must be refused."""

from __future__ import annotations

import copy
import functools
import pickle
import random
import threading
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import torchcbl as cbl
from torchcbl.adapters import Film
from torchcbl.backbone.calls import Call

X = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
CUTS = pytest.mark.parametrize("cut", ["traced", "replayed"])
AWAKE = functools.partial(Film, identity=False)


class Nest(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.b(x)))


def gradient_free_encoder(self: Nest, x: Tensor) -> Tensor:
    with torch.no_grad():
        h = self.b[0](x)
    return self.head(torch.tanh(self.b[2](h)))


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, g: Tensor) -> Tensor:
        return g


def straight_through(self: Nest, x: Tensor) -> Tensor:
    return self.head(torch.tanh(self.b[2](StraightThrough.apply(self.b[0](x)))))


def full_precision_inside(self: Nest, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return self.head(torch.tanh(self.b(x.float())))


def full_precision_between_layers(self: Nest, x: Tensor) -> Tensor:
    h = self.b(x)
    with torch.autocast("cpu", enabled=False):
        h = h.pow(2)
    return self.head(h)


@torch.autocast("cpu", enabled=False)
def full_precision_throughout(self: Nest, x: Tensor) -> Tensor:
    return self.head(torch.tanh(self.b(x)))


def casts_by_itself(self: Nest, x: Tensor) -> Tensor:
    h = torch.tanh(self.b(x))
    return self.head(h.bfloat16() + 1 if torch.is_autocast_enabled("cpu") else h)


def answers_in_low_precision(self: Nest, x: Tensor) -> Tensor:
    y = self.head(torch.tanh(self.b(x)))
    return y.half() if torch.is_autocast_enabled("cpu") else y


OF_AUTOCAST = [full_precision_inside, full_precision_between_layers, full_precision_throughout, casts_by_itself]


@pytest.mark.parametrize("forward", [gradient_free_encoder, straight_through, *OF_AUTOCAST, answers_in_low_precision])
def test_what_a_trace_would_lose_is_replayed(forward: Callable[[Nest, Tensor], Tensor]) -> None:
    backbone = type("Special", (Nest,), {"forward": forward})()
    net = cbl.ContextLoop(backbone, "b.2", X)
    assert net.plan.kind == "replayed"
    gradients = [
        torch.autograd.grad(net.refine(X, steps=steps).outputs[0].sum(), backbone.b[0].weight, allow_unused=True)[0]
        for steps in (0, 1)
    ]
    if gradients[0] is None:
        assert gradients[1] is None
    else:
        torch.testing.assert_close(gradients[0], gradients[1])


class CountsConvolutions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: tuple[type, ...],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        if func is torch.conv2d:
            self.seen.append(torch.is_autocast_enabled("cpu"))
        return func(*args, **(kwargs or {}))


def test_building_computes_no_convolution_in_low_precision() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 3))
    with CountsConvolutions() as counted:
        net = cbl.ContextLoop(backbone, "1", torch.randn(2, 3, 8, 8))
    assert net.plan.kind == "traced"
    assert counted.seen
    assert not any(counted.seen)


class NormAct(nn.BatchNorm2d):
    """A batch norm with the activation inside, as timm has it."""

    def forward(self, input: Tensor) -> Tensor:
        return F.relu(super().forward(input))


class NormActNet(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.c1, self.norm, self.c2, self.fc = nn.Conv2d(3, 4, 3), norm, nn.Conv2d(4, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c2(self.norm(input=self.c1(x))).mean((2, 3)))


@pytest.mark.parametrize("mode", ["per_step", "shared", "frozen", "shared_tracked"])
def test_a_batch_norm_with_more_inside(mode: str) -> None:
    special = cbl.ContextLoop(NormActNet(NormAct(4)), "c1", IMAGES, AWAKE, step_norm=mode)
    special.train()
    outputs = special.refine(IMAGES).outputs
    count = int(special.backbone.norm.num_batches_tracked)
    assert count == (3 if mode == "shared_tracked" else 1)
    by_hand = copy.deepcopy(special.backbone)
    z = special.context(outputs[0])
    h = special.adapters["c1"](by_hand.c1(IMAGES), z)
    if mode == "frozen":
        normed = F.batch_norm(h, by_hand.norm.running_mean, by_hand.norm.running_var)
    else:
        normed = F.batch_norm(h, None, None, training=True)
    expected = by_hand.fc(by_hand.c2(F.relu(normed)).mean((2, 3)))
    torch.testing.assert_close(outputs[1], expected)


def test_its_identity_start_is_exact() -> None:
    for mode in ("per_step", "shared", "frozen", "shared_tracked"):
        net = cbl.ContextLoop(NormActNet(NormAct(4)), "c1", IMAGES, step_norm=mode).eval()
        assert torch.equal(net(IMAGES), net.backbone(IMAGES)), mode


class WritesInTraining(Nest):
    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x)
        if self.training:
            h.mul_(0.5)
        return self.head(torch.tanh(h))


def test_writes_that_only_training_does_are_found() -> None:
    net = cbl.ContextLoop(WritesInTraining(), "b", X).train()
    outputs = net.refine(X).outputs
    torch.testing.assert_close(outputs[2], outputs[0])


class WritesSometimes(Nest):
    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x)
        if float(x.detach().sum()) > 100:
            h.relu_()
        return self.head(torch.tanh(h))


def test_writes_that_the_example_did_not_show_are_refused() -> None:
    net = cbl.ContextLoop(WritesSometimes(), "b", X)
    with pytest.raises(RuntimeError, match=r"wrote in place into a tensor that is needed again \(site 0\)"):
        net(X + 100)
    assert torch.equal(net(X), net.backbone(X))


@CUTS
def test_dropout_that_writes_in_place(cut: str) -> None:
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, 4))
    net = cbl.ContextLoop(backbone, "0", X, cut=cut).train()
    outputs = net.refine(X).outputs
    assert torch.equal(outputs[2], outputs[0])


class TossedBlock(nn.Module):
    """A block that a coin drops in training, by hand."""

    def __init__(self, toss: Callable[[], float]) -> None:
        super().__init__()
        self.linear, self.toss = nn.Linear(6, 6), toss

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.toss() < 0.3:
            return x
        return x + torch.tanh(self.linear(x))


@pytest.mark.parametrize("generator", ["torch", "python", "numpy"])
def test_a_coin_that_drops_blocks_is_tossed_in_every_call_and_held_over_its_steps(generator: str) -> None:
    numpy = pytest.importorskip("numpy")
    toss = {"torch": lambda: torch.rand(1).item(), "python": random.random, "numpy": numpy.random.rand}[generator]
    backbone = nn.Sequential(nn.Linear(6, 6), TossedBlock(toss), TossedBlock(toss), nn.Linear(6, 4))
    for seed in range(4):  # with some of these no block is dropped while the network is traced
        torch.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed)
        net = cbl.ContextLoop(backbone, "0", X).train()
        assert net.plan.reason == "its forward draws random numbers"
    runs = [net.refine(X).outputs for _ in range(12)]
    assert all(torch.equal(y, run[0]) for run in runs for y in run), "a step has tossed again"
    assert len({run[0][0, 0].item() for run in runs}) > 1, "no call has tossed again"


def test_a_network_that_draws_nothing_by_itself_is_traced() -> None:
    backbone = nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.5), nn.Linear(6, 4))
    assert cbl.ContextLoop(backbone, "0", X).plan.kind == "traced"


class DropsWhatIsRead(nn.Module):
    """A dropout that writes in place into what a skip reads, itself or by a view of it."""

    def __init__(self, first: bool, view: bool) -> None:
        super().__init__()
        self.first, self.view = first, view
        self.a, self.head, self.skip = nn.Linear(6, 8), nn.Linear(8, 4), nn.Linear(8, 4)
        self.drop = nn.Dropout(0.5, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x) * 1
        before = self.skip(h.sin()) if self.first else 0.0
        y = self.head(self.drop(h.view(-1, 8) if self.view else h))
        return y + (before if self.first else self.skip(h))


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_dropout_in_place_of_what_is_read_again(first: bool, view: bool) -> None:
    backbone = DropsWhatIsRead(first, view)
    net = cbl.ContextLoop(backbone, "a", X).train()
    assert net.plan.kind == ("traced" if first else "replayed")
    torch.manual_seed(0)
    expected = backbone(X)
    torch.manual_seed(0)
    outputs = net.refine(X).outputs
    assert all(torch.equal(y, expected) for y in outputs)
    if not first:
        with pytest.raises(ValueError, match="'drop' drops out in place what is read again"):
            cbl.ContextLoop(backbone, "a", X, cut="traced")


class Overwrites(nn.Module):
    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h.add_(self.linear(z)) if not torch.is_grad_enabled() else h.mul_(1)


class Keeps(nn.Module):
    def forward(self, h: Tensor, z: Tensor) -> list[Tensor]:
        return [h]


def test_adapters_that_break_the_contract() -> None:
    with pytest.raises(ValueError, match="Overwrites writes into the hidden state it is given"):
        cbl.ContextLoop(Nest(), "b", X, adapter=Overwrites)
    with pytest.raises(TypeError, match="Keeps returned list, expected the refined hidden state"):
        cbl.ContextLoop(Nest(), "b", X, adapter=Keeps())


@CUTS
@pytest.mark.parametrize("source", ["b", "b.0", "b.2"])
def test_the_context_may_come_from_the_site_and_from_around_it(source: str, cut: str) -> None:
    outputs = []
    for kind in ("traced", cut):
        torch.manual_seed(1)
        net = cbl.ContextLoop(Nest(), "b.0", X, AWAKE, cbl.Context(dim=3, source=source), cut=kind)
        outputs.append(net.refine(X).outputs)
    for one, other in zip(*outputs, strict=True):
        torch.testing.assert_close(one, other)


class ReluAfterSource(Nest):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b[2](F.relu(self.b[0](x), inplace=True)), inplace=True))


@CUTS
@pytest.mark.parametrize("source", ["b.0", "b.2"])
def test_the_context_is_taken_before_a_write_in_place(source: str, cut: str) -> None:
    net = cbl.ContextLoop(ReluAfterSource(), "b.0", X, AWAKE, cbl.Context(dim=3, source=source), cut=cut)
    seen: list[Tensor] = []
    net.context.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
    net.refine(X)
    assert all(bool((value < 0).any()) for value in seen), "the context saw what ReLU left"


@CUTS
def test_sites_within_sites(cut: str) -> None:
    outputs = []
    for kind in ("traced", cut):
        torch.manual_seed(1)
        net = cbl.ContextLoop(Nest(), ["b.0", "b"], X, AWAKE, cut=kind)
        outputs.append(net(X))
    torch.testing.assert_close(outputs[0], outputs[1])


def test_a_loop_within_a_loop() -> None:
    inner = cbl.ContextLoop(Nest(), "b.0", X, AWAKE, cut="replayed")
    outer_net = nn.Sequential(nn.Linear(6, 6), inner, nn.Linear(4, 3))
    net = cbl.ContextLoop(outer_net, "0", X, cut="replayed")
    torch.testing.assert_close(net(X), outer_net(X))
    cbl.refinement_loss(net.refine(X), torch.tensor([0, 1, 2, 0])).backward()
    assert all(p.grad is not None for p in inner.adapters.parameters())


class Lists(nn.Module):
    """A prefix that returns a list which the forward empties."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.b, self.head = Twice(), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x)
        skip = features.pop()
        return self.head(torch.tanh(self.b(features.pop())) + skip)


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.linear(x)
        return [h, 2 * h]


@CUTS
def test_containers_that_the_forward_empties(cut: str) -> None:
    net = cbl.ContextLoop(Lists(), "b", X, cut=cut)
    assert torch.equal(net(X), net.backbone(X))


class OddNames(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(6, 8)
        self.bn, self.drop = nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.norm_bn, self.drop_mask, self.mask_drop = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.keys = nn.BatchNorm1d(8)
        self.head = nn.Linear(8, 4)

    def forward(self, step: Tensor) -> Tensor:
        h = self.drop(self.bn(self.values(step)))
        return self.head(self.keys(self.mask_drop(self.drop_mask(self.norm_bn(h)))))


@CUTS
def test_names_that_could_collide(cut: str) -> None:
    net = cbl.ContextLoop(OddNames(), "values", X, cut=cut).eval()
    assert torch.equal(net(X), net.backbone(X))
    net.train()
    assert torch.isfinite(net(X)).all()


class Defaults(Nest):
    def forward(self, x: Tensor, scale: float = 2.0, offset: Tensor | None = None) -> Tensor:
        h = self.b(x) * scale
        return self.head(h if offset is None else h + offset)


def test_default_arguments_do_not_keep_a_model_from_being_traced() -> None:
    net = cbl.ContextLoop(Defaults(), "b", X, AWAKE)
    assert net.plan.kind == "traced"
    assert torch.equal(net.refine(X).outputs[0], net.backbone(X))
    assert torch.equal(net.refine(X, scale=3.0).outputs[0], net.backbone(X, scale=3.0))


class Constant(Nest):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + torch.arange(4.0)


def test_tracing_leaves_nothing_on_the_backbone() -> None:
    backbone = Constant()
    before = set(vars(backbone))
    assert cbl.ContextLoop(backbone, "b", X).plan.kind == "replayed"
    assert set(vars(backbone)) == before


class Scaled(Nest):
    """Reads a buffer as it is, as a number that fx can follow, or as one of Python's."""

    def __init__(self, read: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.read = read
        self.register_buffer("temperature", torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / self.read(self.temperature)  # type: ignore[operator]


@pytest.mark.parametrize("read", [lambda t: t, lambda t: t.item(), float])
def test_buffers_that_are_read_as_numbers_are_read_anew(read: Callable[[Tensor], object]) -> None:
    net = cbl.ContextLoop(Scaled(read), "b", X)
    assert net.plan.kind == ("replayed" if read is float else "traced")
    net.backbone.temperature.fill_(2.0)
    assert torch.equal(net(X), net.backbone(X))


def count_in_training(self: Nest) -> None:
    if self.training:
        self.count += 1


def count_always(self: Nest) -> None:
    self.count.add_(1)


class Writes(Nest):
    def __init__(self, write: Callable[[Nest], None]) -> None:
        super().__init__()
        self.write = write
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self)
        return super().forward(x)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (count_in_training, "does other things in train mode than in eval mode"),
        (count_always, "writes into its parameters or buffers"),
    ],
)
def test_buffers_that_are_written_are_written_in_a_loop(write: Callable[[Nest], None], reason: str) -> None:
    net = cbl.ContextLoop(Writes(write), "b", X).train()
    assert net.plan.kind == "replayed"
    before = int(net.backbone.count)
    net(X)
    assert int(net.backbone.count) == before + 1
    with pytest.raises(ValueError, match=reason):
        cbl.ContextLoop(Writes(write), "b", X, cut="traced")


class Attributes(Nest):
    """Keeps the hidden state in attributes."""

    def __init__(self, keep: Callable[[Attributes, Tensor], None]) -> None:
        super().__init__()
        self.keep = keep
        self.kept: dict[str, list[Tensor]] = {"h": []}

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(x)
        self.keep(self, h)
        return self.head(torch.tanh(h))


def set_one(self: Attributes, h: Tensor) -> None:
    self.aux = h.square().mean()


def append_one(self: Attributes, h: Tensor) -> None:
    self.kept["h"].append(h)


def set_one_in_training(self: Attributes, h: Tensor) -> None:
    if self.training:
        self.aux = h


@pytest.mark.parametrize("keep", [set_one, append_one, set_one_in_training])
def test_attributes_that_forward_sets_are_set_in_a_loop(keep: Callable[[Attributes, Tensor], None]) -> None:
    inner = Attributes(keep)
    backbone = nn.Sequential(nn.Linear(6, 6), inner)
    net = cbl.ContextLoop(backbone, "0", X).train()
    values = [*inner.kept["h"], *([inner.aux] if hasattr(inner, "aux") else [])]
    assert all(type(value) is Tensor for value in values), "proxies were left"
    inner.kept["h"].clear()
    net.refine(X).output.sum().backward()
    made = inner.kept["h"][-1] if keep is append_one else inner.aux
    assert torch.equal(made, made.mean() if keep is set_one else inner.b(backbone[0](X)))
    with pytest.raises(ValueError, match="its forward keeps values in attributes"):
        cbl.ContextLoop(backbone, "0", X, cut="traced")


def set_the_same(self: Attributes, h: Tensor) -> None:
    self.sizes = [1, (0.5, "x")]
    self.b.extra = {"numbers": self.sizes}


def test_attributes_that_stay_the_same_do_not_keep_a_model_from_being_traced() -> None:
    assert cbl.ContextLoop(Attributes(set_the_same), "b", X).plan.kind == "traced"


def test_a_last_layer_of_zeros_is_not_called_dead() -> None:
    backbone = Nest()
    nn.init.zeros_(backbone.head.weight)
    net = cbl.ContextLoop(backbone, "b", X)
    assert net.audit().dead == ("b",), "with these weights nothing can move the output, and the audit says so"


class Logarithms(Nest):
    """Takes positive numbers, and gives NaN for noise."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.log())


def test_what_is_nan_anyway_makes_no_dead_adapter_live() -> None:
    x, options = X.abs() + 0.1, {"schedule": "literal", "adapter": AWAKE}
    with pytest.raises(ValueError, match=r"the adapter at 'b\.0' cannot move the output"):
        cbl.ContextLoop(Logarithms(), ["b.0", "b.2"], x, **options)
    net = cbl.ContextLoop(Logarithms(), ["b.0", "b.2"], x, **options, allow_dead=True)
    assert net.audit().dead == net.audit(x).dead == ("b.0",)


class OfTwo(Nest):
    """Fails on what is made up."""

    def forward(self, tokens: Tensor) -> Tensor:
        if not bool((tokens == 2).any()):
            raise ValueError("there must be a token 2")
        return super().forward(F.one_hot(tokens, 6).float())


def test_a_silent_backbone_that_fails_on_noise_is_audited_on_the_example() -> None:
    backbone = OfTwo()
    nn.init.zeros_(backbone.head.weight)
    assert cbl.ContextLoop(backbone, "b", torch.tensor([1, 2, 4]))._audit.dead == ()


def test_a_hook_on_the_backbone_itself_is_called() -> None:
    backbone = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4))
    calls: list[int] = []
    net = cbl.ContextLoop(backbone, "0", X)
    backbone.register_forward_hook(lambda module, args, output: calls.append(1))
    net(X)
    assert len(calls) == 3, "a hook on the backbone itself was passed over"


def test_casting_and_loading_after_a_cast(tmp_path: object) -> None:
    net = cbl.ContextLoop(Nest(), "b", X).double()
    nn.init.normal_(net.adapters["b"].linear.weight)
    assert net.audit().dead == ()
    net.save(str(tmp_path))
    assert torch.equal(cbl.load(str(tmp_path), net.backbone)(X.double()), net(X.double()))


def test_a_backbone_without_parameters() -> None:
    net = cbl.ContextLoop(nn.Sequential(nn.Tanh(), nn.Softplus()), "0", X)
    assert net.audit().dead == ()


def test_local_factories_can_be_pickled() -> None:
    net = cbl.ContextLoop(
        nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)),
        "0",
        X,
        adapter=lambda site, dim: Film(site, dim, identity=False),
    )
    assert torch.equal(pickle.loads(pickle.dumps(net))(X), net(X))


def test_frozen_statistics_survive_a_second_forward() -> None:
    torch.manual_seed(0)
    net = cbl.ContextLoop(NormActNet(nn.BatchNorm2d(4)), "c1", IMAGES, AWAKE, step_norm="frozen").train()
    twin = copy.deepcopy(net)
    loss = net(IMAGES).square().sum()
    net(IMAGES * 3 + 5)
    ours = torch.autograd.grad(loss, list(net.parameters()))
    theirs = torch.autograd.grad(twin(IMAGES).square().sum(), list(twin.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(5, 7, 1), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).transpose(1, 2))


def test_a_context_per_position_from_channels_first() -> None:
    net = cbl.ContextLoop(
        Sequence(), "head", torch.randn(2, 5, 7), context=cbl.Context(dim=3, source="conv"), adapter="film"
    )
    x = torch.randn(2, 5, 7)
    z: list[Tensor] = []
    net.context.register_forward_hook(lambda module, args, output: z.append(output))
    net(x)
    torch.testing.assert_close(z[0], net.context.map(net.backbone.conv(x).transpose(1, 2)))


@CUTS
def test_tensors_made_in_inference_mode_may_be_used_outside(cut: str) -> None:
    backbone = nn.Sequential(nn.Flatten(), *Nest().b)
    net = cbl.ContextLoop(backbone, "1", X, cut=cut)
    with torch.inference_mode():
        made = X.clone()
    with torch.no_grad():
        assert torch.equal(net(made), backbone(X))


@CUTS
def test_added_backbone_parts_are_refused(cut: str) -> None:
    net = cbl.ContextLoop(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)), "0", X, cut=cut)
    net.backbone.append(nn.Softmax(-1))
    with pytest.raises(RuntimeError, match="submodule '2' of Sequential was added after the loop was built"):
        net(X)


def test_keywords_may_come_in_any_order() -> None:
    net = cbl.ContextLoop(Defaults(), "b", {"x": X, "offset": torch.ones(8)}, AWAKE)
    orders = ({"x": X, "offset": torch.zeros(8)}, {"offset": torch.zeros(8), "x": X})
    assert [net.cut_for(Call((), order)) is net._cut for order in orders] == [True, True]
    assert torch.equal(net(**orders[0]), net(**orders[1]))


def test_building_under_inference_mode() -> None:
    backbone = Nest()
    with torch.inference_mode():
        net = cbl.ContextLoop(backbone, "b", X.clone())
        assert torch.equal(net(X), backbone(X))


@CUTS
def test_fresh_copies_in_many_threads(cut: str) -> None:
    for _ in range(3):
        net = copy.deepcopy(cbl.ContextLoop(Nest(), "b", X, AWAKE, cut=cut))
        wrong: list[str] = []
        expected: list[Tensor] = []

        def work(net: cbl.ContextLoop = net, wrong: list[str] = wrong, expected: list[Tensor] = expected) -> None:
            try:
                expected.append(net(X))
            except Exception as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert all(torch.equal(value, expected[0]) for value in expected)


def test_two_loops_around_one_backbone_in_two_threads() -> None:
    backbone = Nest()
    nets = [cbl.ContextLoop(backbone, site, X, AWAKE, cut="replayed") for site in ("b", "b.0")]
    expected = [net(X) for net in nets]
    wrong: list[str] = []

    def work(index: int) -> None:
        for _ in range(50):
            try:
                if not torch.equal(nets[index](X), expected[index]):
                    wrong.append("another answer")
            except Exception as error:
                wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        with FlopCounterMode(display=False):  # whose hooks run in every thread
            nn.Linear(6, 6)(X)
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"sites": 3}, TypeError, r"sites must be names or globs of submodules \(str\), got int"),
        ({"context": "probs"}, TypeError, r"context must be a torchcbl.Context, got 'probs'"),
        (
            {"context": cbl.Context(dim=3, map=lambda f, d: nn.Linear(f, d + 1))},
            ValueError,
            r"returned shape \(4, 4\) for \(4, 4\), expected \(B, 3\)",
        ),
        ({"schedule": ["literal"]}, ValueError, "schedule must be one of"),
        ({"channel_dim": "1"}, TypeError, "channel_dim must be a whole number, got '1'"),
        ({"schedule": "literal", "sites": ["b.0", "b.2"], "alpha": 1.0}, ValueError, "alpha = 1 keeps the old state"),
    ],
)
def test_more_bad_arguments(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cbl.ContextLoop(**{"backbone": Nest(), "sites": "b", "example": X, **options})  # type: ignore[arg-type]


def test_a_context_map_must_be_callable() -> None:
    with pytest.raises(TypeError, match=r"Context\.map must be callable"):
        cbl.Context(dim=3, map=7)  # type: ignore[arg-type]


def test_more_bad_losses() -> None:
    net = cbl.ContextLoop(Nest(), "b", X)
    target = torch.arange(4)
    with pytest.raises(TypeError, match=r"needs what net.refine\(x\) returns, got Tensor"):
        cbl.refinement_loss(net(X), target)
    with pytest.raises(ValueError, match=r"criterion returned shape \(4,\), expected a scalar"):
        cbl.refinement_loss(net.refine(X), target, criterion=functools.partial(F.cross_entropy, reduction="none"))
    with pytest.raises(ValueError, match="weights must not be negative"):
        cbl.refinement_loss(net.refine(X), target, weights=[2.0, -1.0, 0.0])
    for weights in (None, [[0.2, 0.3, 0.5]], ["a", "b", "c"]):
        with pytest.raises(TypeError, match="weights must be a name or a flat sequence of numbers"):
            cbl.refinement_loss(net.refine(X), target, weights=weights)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    net = cbl.ContextLoop(Nest(), "b", X, steps=numpy.int64(2), alpha=numpy.float32(0.5))
    assert len(net.refine(X, steps=numpy.int64(3)).outputs) == 4


@pytest.mark.parametrize("site", ["b", "b.0", "head"])
def test_what_hooks_compute_is_none_of_the_backbone_s(site: str) -> None:
    backbone = Nest()
    seen: list[float] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        seen.append(float(output.detach().abs().mean()))
        return output * 1.5 + torch.ones(1)

    for module in (backbone.b[0], backbone.b):
        module.register_forward_hook(hook)
    backbone.b[2].register_forward_pre_hook(lambda module, args: (args[0] * 0.5,))
    net = cbl.ContextLoop(backbone, site, X, AWAKE, allow_dead=site == "head").eval()
    seen.clear()
    r = net.refine(X, steps=3)
    assert len(seen) == 2 + {"b": 3, "b.0": 6, "head": 0}[site], (
        "hooks below the site run once, those above at each step"
    )
    torch.testing.assert_close(r.outputs[0], backbone(X), rtol=0, atol=0)


class Counting(nn.BatchNorm2d):
    """A batch norm that counts its batches in a forward of its own, as timm's do."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(input, self.running_mean, self.running_var, training=self.training)


def test_building_a_loop_writes_into_no_buffer() -> None:
    backbone = NormActNet(Counting(4)).train()
    before = copy.deepcopy(backbone.state_dict())
    net = cbl.ContextLoop(backbone, "c1", IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    net.refine(IMAGES)
    assert int(backbone.norm.num_batches_tracked) == 1


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 1
        return x


def test_buffers_that_forward_replaces_are_the_same_tensors_after_building() -> None:
    backbone = nn.Sequential(nn.Linear(4, 4), _Counting(), nn.Linear(4, 3)).train()
    count = backbone[1].count
    cbl.ContextLoop(backbone, "0", torch.randn(2, 4))
    assert backbone[1].count is count
    assert int(count) == 0


class PaddedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(6, 4)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding)[:, 0])


def test_a_frozen_encoder_with_padding() -> None:
    backbone = PaddedEncoder().requires_grad_(False).eval()
    x, padding = torch.randn(2, 5, 6), torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    net = cbl.ContextLoop(backbone, "encoder.layers.0", (x, padding))
    assert net.sites[0].shape == (2, 5, 6), "torch's fused path has no shape to tell"
    torch.testing.assert_close(net(x, padding), backbone(x, padding))


class Merging(nn.Linear):
    """Adds its low-rank part to its weight in eval mode and takes it off in train mode, as loralib's layers do."""

    def __init__(self, features: int, out: int) -> None:
        super().__init__(features, out)
        self.down, self.up = nn.Parameter(torch.randn(2, features)), nn.Parameter(torch.randn(out, 2))
        self.merged = False

    def train(self, mode: bool = True) -> Merging:
        super().train(mode)
        if self.merged is mode:
            self.weight.data.add_(self.up @ self.down, alpha=-1 if mode else 1)
            self.merged = not mode
        return self

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.merged else y + x @ self.down.T @ self.up.T


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("cut", ["auto", "replayed"])
def test_building_merges_no_weights(cut: str, training: bool) -> None:
    backbone = nn.Sequential(Merging(6, 8), nn.ReLU(), nn.Linear(8, 4)).train(training)
    weight, expected = backbone[0].weight.clone(), backbone(X)
    net = cbl.ContextLoop(backbone, "1", X, cut=cut)
    net.export(X)
    assert (net.training, backbone[0].merged) == (training, not training)
    assert torch.equal(backbone[0].weight, weight)
    assert torch.equal(net(X), expected)
