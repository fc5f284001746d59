"""Batch norm and dropout across the steps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import torchcbl as cbl
from backbones import CASES, ResidualCnn
from subject import awaken
from torchcbl.halting import Halting, Progress
from torchcbl.stages.tracing import NotTraceable, trace
from torchcbl.step_norm import draw_mask

IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(5))
CUTS = pytest.mark.parametrize("cut", ["traced", "replayed"])


class NormNet(nn.Module):
    """Linear, batch norm, linear: the batch norm's input at each step is known in closed form."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.below = nn.BatchNorm1d(4)
        self.site = nn.Linear(4, 5)
        self.norm = nn.BatchNorm1d(5)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dropout(self.norm(self.site(self.below(x)))))


class Double(nn.Module):
    """psi(h, z) = 2 h, so that every step tau >= 1 feeds the norm 2 h_0."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__()

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return 2 * h


def build(mode: str | None, cut: str, steps: int = 2, dropout: float = 0.0) -> cbl.ContextLoop:
    return cbl.ContextLoop(
        NormNet(dropout), "site", torch.randn(6, 4), adapter=Double, steps=steps, step_norm=mode, cut=cut
    )


@CUTS
@pytest.mark.parametrize("mode", ["per_step", "shared", "frozen", "shared_tracked"])
def test_statistics_in_training(mode: str, cut: str) -> None:
    net = build(mode, cut).train()
    backbone: NormNet = net.backbone  # type: ignore[assignment]
    x = torch.randn(32, 4)
    reference = NormNet()
    reference.load_state_dict(backbone.state_dict())
    h = reference.site(reference.below(x))
    first = net.refine(x)

    def updated(mean: Tensor, value: Tensor) -> Tensor:
        return 0.9 * mean + 0.1 * value.mean(0)

    zero = torch.zeros(5)
    fed = {"shared_tracked": updated(updated(updated(zero, h), 2 * h), 2 * h)}.get(mode, updated(zero, h))
    torch.testing.assert_close(backbone.norm.running_mean, fed)
    assert int(backbone.norm.num_batches_tracked) == (3 if mode == "shared_tracked" else 1)
    assert int(backbone.below.num_batches_tracked) == 1, "the prefix ran more than once"

    statistics = list(net.step_norm.statistics.values())
    assert len(statistics) == (1 if mode == "per_step" else 0)
    for kept in statistics:
        torch.testing.assert_close(kept.running_mean, torch.stack([updated(zero, 2 * h)] * 2))
        assert kept.num_batches_tracked.tolist() == [1, 1]

    if mode == "frozen":
        normed = F.batch_norm(2 * h, backbone.norm.running_mean, backbone.norm.running_var)
    else:
        normed = F.batch_norm(2 * h, None, None, training=True)
    torch.testing.assert_close(first.outputs[1], backbone.head(normed))


@CUTS
def test_per_step_statistics_are_used_in_eval(cut: str) -> None:
    net = build(None, cut)
    assert net.config.step_norm == "per_step"
    backbone: NormNet = net.backbone  # type: ignore[assignment]
    kept = net.step_norm.statistics["norm"]
    net.eval()
    x = torch.randn(8, 4)
    h = backbone.site(backbone.below(x))
    # a step that was never trained uses the backbone's statistics, as they are now
    backbone.norm.running_mean.fill_(0.7)
    torch.testing.assert_close(net.refine(x).outputs[1], backbone.head(backbone.norm(2 * h)))
    kept.running_mean[0], kept.running_mean[1] = 1.0, 2.0
    kept.num_batches_tracked.fill_(1)
    for step, mean in ((1, 1.0), (2, 2.0), (3, 2.0), (5, 2.0)):  # beyond T the last step's statistics serve
        expected = backbone.head(F.batch_norm(2 * h, torch.full((5,), mean), kept.running_var[0], eps=1e-5))
        torch.testing.assert_close(net.refine(x, steps=5).outputs[step], expected)


def test_cumulative_average() -> None:
    net = build(None, "traced")
    net.backbone.norm.momentum = None
    net.train()
    batches = [torch.randn(16, 4) for _ in range(3)]
    means = []
    for x in batches:
        net(x)
        h = net.backbone.site(F.batch_norm(x, None, None, training=True))
        means.append(2 * h.mean(0))
    torch.testing.assert_close(net.step_norm.statistics["norm"].running_mean[0], torch.stack(means).mean(0))


def test_update_bn_renews_the_statistics_of_every_step() -> None:
    net = build(None, "traced").train()
    for _ in range(5):
        net(torch.randn(16, 4))
    resumed = build(None, "traced")
    resumed.load_state_dict(net.state_dict())
    batches = [torch.randn(16, 4) + 3 for _ in range(3)]
    for one in (net, resumed):
        with torch.no_grad():
            one.backbone.site.bias.fill_(10.0)
        update_bn(batches, one)
        kept, norm = one.step_norm.statistics["norm"], one.backbone.norm
        assert kept.num_batches_tracked.tolist() == [3, 3]
        torch.testing.assert_close(kept.running_mean, 2 * norm.running_mean.expand(2, 5))
        torch.testing.assert_close(kept.running_var, 4 * norm.running_var.expand(2, 5))


def test_frozen_norms_of_a_training_net() -> None:
    net = build("per_step", "traced").train()
    net.backbone.norm.eval()
    before = net.backbone.norm.running_mean.clone()
    net(torch.randn(8, 4))
    assert torch.equal(net.backbone.norm.running_mean, before)
    assert net.step_norm.statistics["norm"].num_batches_tracked.tolist() == [0, 0]


def test_sync_batch_norm_says_what_to_do() -> None:
    backbone = nn.SyncBatchNorm.convert_sync_batchnorm(NormNet())
    with pytest.raises(ValueError, match="'norm' is a SyncBatchNorm.*step_norm=\"frozen\""):
        cbl.ContextLoop(backbone.eval(), "site", torch.randn(6, 4), step_norm="per_step")


def test_no_batch_norm_needs_no_statistics() -> None:
    net = cbl.ContextLoop(CASES["mlp"].build(), "first", CASES["mlp"].example())
    assert not net.step_norm.statistics
    assert "step_norm" not in repr(net)


@CUTS
@pytest.mark.parametrize(
    "dropout", [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]
)
def test_masks_are_held(dropout: type[nn.Module], cut: str) -> None:
    if dropout in (nn.AlphaDropout, nn.FeatureAlphaDropout) and cut == "traced":
        cut = "auto"  # its mask is no factor, so such a network is replayed
    layers = [nn.Conv2d(3, 4, 1), dropout(0.5), nn.Flatten(), nn.Linear(4 * 64, 3)]
    if dropout is nn.Dropout1d:
        layers = [nn.Conv2d(3, 4, 1), nn.Flatten(2), dropout(0.5), nn.Flatten(), nn.Linear(4 * 64, 3)]
    if dropout is nn.Dropout3d:
        layers = [nn.Conv2d(3, 4, 1), nn.Unflatten(2, (8, 1)), dropout(0.5), nn.Flatten(), nn.Linear(4 * 64, 3)]
    net = cbl.ContextLoop(nn.Sequential(*layers), "0", IMAGES, steps=3, cut=cut).train()
    torch.manual_seed(9)
    outputs = net.refine(IMAGES).outputs
    torch.manual_seed(9)
    assert torch.equal(outputs[0], net.backbone(IMAGES)), "step 0 draws another mask than the backbone"
    for output in outputs[1:]:  # the adapters are the identity, so only another mask could make a difference
        torch.testing.assert_close(output, outputs[0], rtol=0, atol=1e-6)
    assert not torch.equal(net(IMAGES), outputs[-1]), "two calls draw the same mask"


def test_leaky_noise_is_held() -> None:
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.RReLU(0.1, 0.9), nn.Flatten(), nn.Linear(4 * 64, 3))
    net = cbl.ContextLoop(backbone, "0", IMAGES, steps=3).train()
    assert net.plan.kind == "replayed"
    assert "'1' draws random numbers" in net.plan.reason
    outputs = net.refine(IMAGES).outputs
    assert torch.equal(outputs[3], outputs[0])
    assert not torch.equal(net(IMAGES), outputs[0]), "two calls draw the same noise"


@pytest.mark.parametrize("kind", [nn.FractionalMaxPool2d, nn.FractionalMaxPool3d])
def test_pooling_is_traced_only_where_its_regions_are_given(kind: type[nn.Module]) -> None:
    free, given = kind(2, output_ratio=0.6), kind(2, output_ratio=0.6, _random_samples=torch.rand(6, 3, 2))
    with pytest.raises(NotTraceable, match="'0' draws random numbers that cannot be held"):
        trace(nn.Sequential(free), (1, ()), ["0"])
    assert trace(nn.Sequential(given), (1, ()), ["0"])


def test_functional_dropout_is_held() -> None:
    net = cbl.ContextLoop(CASES["branching"].build(), "low", CASES["branching"].example(), step_norm="shared").train()
    r = net.refine(CASES["branching"].example())
    assert net.plan.kind == "replayed"
    torch.testing.assert_close(r.outputs[2], r.outputs[0])


def test_draw_mask_is_bitwise_the_dropout() -> None:
    dropout, x = nn.Dropout(0.3), torch.randn(1000)
    torch.manual_seed(2)
    expected = dropout(x)
    torch.manual_seed(2)
    mask = draw_mask(dropout, x)
    assert mask is not None
    assert torch.equal(x * mask, expected)
    assert draw_mask(dropout.eval(), x) is None


@CUTS
def test_training_a_network_with_batch_norm_and_dropout_leaves_step_zero_alone(cut: str) -> None:
    net = cbl.ContextLoop(ResidualCnn(), ["block1"], IMAGES, cut=cut).train()
    twin = ResidualCnn().train()
    twin.load_state_dict(net.backbone.state_dict())
    torch.manual_seed(4)
    y0 = net.refine(IMAGES).outputs[0]
    torch.manual_seed(4)
    assert torch.equal(y0, twin(IMAGES))
    for name, value in net.backbone.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), f"{name} was fed by a later step"


class Leaving(Halting):
    """Sample i goes at step i + 1."""

    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        when = memory[0] if isinstance(memory, tuple) and memory else torch.arange(1, len(progress.residual) + 1)
        return progress.step >= when, (when,)


class Heads(nn.Module):
    """Two heads and a loss; batch norm sees each position as a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(5)
        self.head, self.aux = nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.site(x)
        h = torch.tanh(self.norm(h.flatten(0, 1))).reshape(h.shape).mean(1)
        logits = self.head(h)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits, "aux": self.aux(h)}


def with_statistics(positions: int, cut: str, **options: object) -> tuple[cbl.ContextLoop, Tensor, Tensor]:
    """A loop in eval mode whose batch norm has another mean and variance at each step, and a batch."""
    generator = torch.Generator().manual_seed(2)
    x, labels = torch.randn(4, positions, 4, generator=generator).double(), torch.tensor([0, 1, 2, 0])
    torch.manual_seed(1)
    net = awaken(cbl.ContextLoop(Heads().double(), "site", (x, labels), cut=cut, steps=4, output="logits", **options))
    kept = net.step_norm.statistics["norm"]
    kept.running_mean.copy_(torch.randn(4, 5, generator=generator))
    kept.running_var.copy_(1 + torch.rand(4, 5, generator=generator))
    kept.num_batches_tracked.fill_(1)
    return net.eval(), x, labels


@CUTS
@pytest.mark.parametrize("schedule", ["repropagate", "synchronous"])
@pytest.mark.parametrize("positions", [1, 3])
def test_all_that_is_returned_of_a_sample_is_of_its_own_step(positions: int, schedule: str, cut: str) -> None:
    net, x, labels = with_statistics(positions, cut, schedule=schedule)
    with torch.no_grad():
        plain = [net.refine(x, labels, steps=steps).returned for steps in range(1, 5)]
        found = net.refine(x, labels, halting=Leaving())
    assert found.steps.tolist() == [1, 2, 3, 4]
    assert found.evaluations.tolist() == [2, 3, 4, 5]
    for name in ("logits", "aux"):
        own = torch.stack([plain[step][name][step] for step in range(4)])
        torch.testing.assert_close(found.returned[name], own, rtol=1e-10, atol=1e-12)
    assert torch.equal(found.returned["logits"], found.output)
    torch.testing.assert_close(found.returned["loss"], F.cross_entropy(found.output, labels))


@CUTS
@pytest.mark.parametrize("mode", ["per_step", "shared", "frozen", "shared_tracked"])
def test_one_object_for_samples_that_ended_apart_feeds_nothing(mode: str, cut: str) -> None:
    x, labels = torch.randn(4, 2, 4), torch.tensor([0, 1, 2, 0])
    net = awaken(cbl.ContextLoop(Heads(), "site", (x, labels), steps=4, step_norm=mode, cut=cut, output="logits"))
    found = net.train().refine(x, labels, halting=Leaving())
    assert found.steps.tolist() == [1, 2, 3, 4]
    assert int(net.backbone.norm.num_batches_tracked) == (5 if mode == "shared_tracked" else 1)
    for kept in net.step_norm.statistics.values():
        assert kept.num_batches_tracked.tolist() == [1] * 4
    assert found.returned["logits"] is found.output
    found.returned["loss"].backward()
    assert all(p.grad is not None for p in net.adapters.parameters())


@CUTS
def test_truncated_feeds_each_step_once(cut: str) -> None:
    net = cbl.ContextLoop(NormNet(), "site", torch.randn(6, 4), context=cbl.Context(2, "norm"), steps=3, cut=cut)
    net.train().refine(torch.randn(8, 4), gradient="truncated")  # for which z is made again after step 2
    assert int(net.backbone.norm.num_batches_tracked) == 1
    assert net.step_norm.statistics["norm"].num_batches_tracked.tolist() == [1, 1, 1]


def test_a_batch_of_none_has_an_object_too() -> None:
    net, x, labels = with_statistics(1, "traced")
    found = net.refine(x[:0], labels[:0], halting=Leaving())
    assert found.returned["aux"].shape == (0, 2)


class Pooled(Heads):
    """Its batch norm sees one more row than there are samples."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        h = self.site(x)
        h = torch.tanh(self.norm(torch.cat([h, h.mean(0, keepdim=True).detach() * 0])))[:-1]
        logits = self.head(h)
        return {"loss": F.cross_entropy(logits, labels), "logits": logits, "aux": self.aux(h)}


@CUTS
def test_rows_of_nobody_have_the_last_step_s_statistics(cut: str) -> None:
    x, labels = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    net = awaken(cbl.ContextLoop(Pooled(), "site", (x, labels), steps=4, cut=cut, output="logits")).eval()
    net.step_norm.statistics["norm"].running_mean.copy_(torch.arange(4.0)[:, None].expand(4, 5))
    net.step_norm.statistics["norm"].num_batches_tracked.fill_(1)
    with torch.no_grad():
        plain, found = net.refine(x, labels), net.refine(x, labels, halting=Leaving())
    own = torch.stack([plain.outputs[step + 1][step] for step in range(4)])
    torch.testing.assert_close(found.returned["logits"], own)
    torch.testing.assert_close(found.returned["aux"][3], plain.returned["aux"][3])


@CUTS
def test_frozen_statistics_are_those_of_the_call_in_the_backward_pass_too(cut: str) -> None:
    torch.manual_seed(1)
    start = build("frozen", cut, steps=3).double().train()
    x = torch.randn(8, 4).double()
    gradients = []
    for gradient in ("bptt", "checkpointed"):
        net = copy.deepcopy(start)
        loss = sum(net.refine(z, gradient=gradient).output.square().sum() for z in (x, 3 * x + 2))
        moved = net.backbone.norm.running_mean.clone()
        gradients.append(torch.autograd.grad(loss, list(net.backbone.parameters())))
        assert torch.equal(net.backbone.norm.running_mean, moved), "the backward pass has fed statistics"
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
