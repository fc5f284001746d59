"""Loops on networks of timm and torchvision, by the behaviours that every loop has."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import torchcbl as cbl
from behaviours import BEHAVIOURS, ESSENTIAL
from subject import Subject, awaken, output_of
from zoo_models import FULL, MODELS, ZooModel

pytest.importorskip("timm", reason="the model zoo needs timm")
pytest.importorskip("torchvision", reason="the model zoo needs torchvision")

VITS = ("timm vit_tiny", "torchvision vit")
SEGMENTATION = ("torchvision fcn", "torchvision lraspp_mobilenet_v3_large")
NO_BATCH_NORM = ("convnext", "vit", "swin", "mixer")
ALL_SIZES = {**MODELS, **{f"{name}, full size": model for name, model in FULL.items()}}


@functools.cache
def subject(name: str, **options: object) -> Subject:
    model = MODELS[name]
    return Subject(model.build, model.sites, model.batch, context=model.context, reuse=True, **options)  # type: ignore[arg-type]


def examine(name: str, behaviour: str, **options: object) -> None:
    BEHAVIOURS[behaviour](subject(name, **options))


def build(model: ZooModel, adapter: str = "film", **context: object) -> cbl.ContextLoop:
    settings = cbl.Context(dim=5, **{**model.context, **context})  # type: ignore[arg-type]
    torch.manual_seed(3)
    return cbl.ContextLoop(model.build().eval(), model.sites, model.batch(2), adapter, settings)


def per_network() -> Iterator[object]:
    """Every behaviour that depends on the adapter, and one of the others in turn, of each network in one process.

    docs/model_table.py examines all of them.
    """
    others = [behaviour for behaviour in BEHAVIOURS if behaviour not in ESSENTIAL]
    for i, name in enumerate(MODELS):
        for behaviour in (*ESSENTIAL, others[i % len(others)]):
            yield pytest.param(name, behaviour, marks=pytest.mark.xdist_group(name))


@pytest.mark.parametrize(("name", "behaviour"), per_network())
def test_behaviours(name: str, behaviour: str) -> None:
    examine(name, behaviour)


OTHER_ADAPTERS = ("concat", "attention", "additive", "gate", "recurrent")


# one of five for each network, in turn: docs/model_table.py runs all networks with all adapters
@pytest.mark.parametrize(("name", "adapter"), [(name, OTHER_ADAPTERS[i % 5]) for i, name in enumerate(MODELS)])
def test_other_adapters(name: str, adapter: str) -> None:
    """Start as the identity; let gradients through to all: all are live, or the loop is refused."""
    model, batch = MODELS[name], MODELS[name].batch(3)
    net = build(model, adapter)
    with torch.no_grad():
        reference = output_of(net.backbone(**batch))
        for output in net.refine(**batch, steps=2).outputs:
            assert torch.equal(output, reference)
    output_of(awaken(net)(**batch)).square().sum().backward()
    for module in net.adapters.values():
        assert any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert all(p.grad is not None for p in net.backbone.parameters())


@pytest.mark.parametrize("behaviour", ESSENTIAL)
@pytest.mark.parametrize("name", VITS)
def test_tokens_join_the_attention_of_a_vit(name: str, behaviour: str) -> None:
    fused = name == "torchvision vit"  # nn.MultiheadAttention, which in inference takes another path without a loop
    examine(name, behaviour, adapter="token", tolerance=1e-6 if fused else 0.0)


@pytest.mark.parametrize(
    ("name", "site", "message"),
    [
        ("timm maxvit", "stages.0", "attention layer after it has a batch of .* and not split into windows"),
        ("timm swin_tiny", "layers.0", "no attention layer that torch computes"),
        ("torchvision swin", "features.1", "no attention layer that torch computes"),
        ("timm resnet18", "layer2", "no attention layer that torch computes"),
    ],
)
def test_where_tokens_cannot_join(name: str, site: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cbl.ContextLoop(MODELS[name].build(), site, MODELS[name].batch(2), "token")


@pytest.mark.parametrize("behaviour", ESSENTIAL)
@pytest.mark.parametrize("schedule", ["literal", "synchronous"])
@pytest.mark.parametrize("name", ["torchvision resnet18", "timm vit_tiny"])
def test_other_schedules(name: str, schedule: str, behaviour: str) -> None:
    examine(name, behaviour, schedule=schedule)


@pytest.mark.parametrize("name", ALL_SIZES)
def test_what_a_loop_finds_out(name: str) -> None:
    model = ALL_SIZES[name]
    net, batch = build(model), model.batch(2)
    assert tuple(site.name for site in net.sites) == model.sites
    assert tuple(site.channel_dim for site in net.sites) == model.axes
    assert (net.plan.kind, net.plan.reason) == ("replayed" if model.reason else "traced", model.reason)
    with torch.no_grad():
        returned, expected = net(**batch), net.backbone(**batch)
    assert type(returned) is type(expected)
    assert torch.equal(output_of(returned), output_of(expected))


@pytest.mark.parametrize("name", [name for name in MODELS if not any(kind in name for kind in NO_BATCH_NORM)])
def test_a_training_step_feeds_the_backbone_s_statistics_once(name: str) -> None:
    model, batch = MODELS[name], MODELS[name].batch(4)
    net = awaken(build(model)).train()
    torch.manual_seed(3)
    twin = model.build().train()
    torch.manual_seed(4)
    expected = output_of(twin(**batch))
    torch.manual_seed(4)
    refinement = net.refine(**batch)
    assert torch.equal(refinement.outputs[0], expected)
    assert not torch.equal(refinement.outputs[1], expected)
    for key, value in twin.state_dict().items():
        assert torch.equal(net.backbone.state_dict()[key], value), f"{key} is not what step 0 makes of it"
    assert net.step_norm.statistics
    for statistics in net.step_norm.statistics.values():
        assert statistics.num_batches_tracked.tolist() == [1, 1]
    cbl.refinement_loss(refinement, _target(expected)).backward()
    for parameter in (*net.backbone.parameters(), *net.adapter_parameters()):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all())


@pytest.mark.parametrize("per", ["position", "sample"])
@pytest.mark.parametrize("name", SEGMENTATION)
def test_context_of_a_segmentation(name: str, per: str) -> None:
    """A context per pixel is resized to h; what one corner of y says stays in that corner of h."""
    net, batch = awaken(build(MODELS[name], per=per)), MODELS[name].batch(2)
    y = net.refine(**batch, steps=0).output.detach()
    assert y.shape == (2, 5, 32, 32)
    z, other = net.context(y), net.context(y + 1 * _corner(y))
    assert z.shape == ((2, 32, 32, 5) if per == "position" else (2, 5))
    site, adapter = net.sites[0], next(iter(net.adapters.values()))
    h = torch.randn(site.shape)
    moved = (adapter(h, other) - adapter(h, z)).abs().amax(dim=(0, 1)) > 0
    assert bool(moved[0, 0])
    assert bool(moved[-1, -1]) == (per == "sample")


def _corner(y: Tensor) -> Tensor:
    corner = torch.zeros_like(y)
    corner[..., :8, :8] = 1
    return corner


def _target(output: Tensor) -> Tensor:
    return torch.zeros(output.shape[0], *output.shape[2:], dtype=torch.long)
