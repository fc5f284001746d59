"""Sites: names, globs, shapes, channel axes, and what cannot be one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import Mlp, ResidualCnn
from torchcbl.backbone.calls import Call
from torchcbl.backbone.names import match_names
from torchcbl.backbone.observation import observe
from torchcbl.backbone.site import build_sites

X = torch.randn(2, 6)


class Odd(nn.Module):
    """Submodules that cannot be a site, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.Linear(6, 6)
        self.never = nn.Linear(6, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.outer = nn.Sequential(nn.Linear(6, 6))
        self.embed = nn.Embedding(3, 6)
        self.codes = Codes()
        self.words = Words()
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        h, _ = self.lstm(x[:, None])
        self.words(x)
        return self.head(self.outer(h[:, 0]) + self.embed(self.codes(x)).mean(1))


class Codes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x > 0).long()


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "none"


@pytest.mark.parametrize(
    ("site", "error", "message"),
    [
        ("hed", ValueError, "site 'hed' not found in Odd: did you mean 'head'.*torchcbl.sites"),
        ("layer5", ValueError, "site 'layer5' not found in Odd: it has"),
        ("never", ValueError, "site 'never' never runs"),
        ("twice", ValueError, "site 'twice' runs 2 times in one forward pass, expected once"),
        ("words", TypeError, "site 'words' returns str that holds no floating-point tensor"),
        ("codes", TypeError, "site 'codes' returns a tensor of dtype torch.int64"),
        (["outer", "outer.0"], ValueError, "'outer.0' and 'outer' are one and the same tensor"),
        ([], ValueError, "sites is empty"),
        ([3], TypeError, "sites must be names or globs"),
    ],
)
def test_what_cannot_be_a_site(site: str | list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        cbl.ContextLoop(Odd(), site, X)


def test_sites_lists_what_can_be_one() -> None:
    assert cbl.sites(Odd(), X) == ["lstm", "outer", "outer.0", "embed", "head"]
    assert "never" in cbl.sites(Odd())


def test_globs_stay_within_a_level() -> None:
    backbone = ResidualCnn()
    assert match_names(backbone, "block*") == ["block1", "block2"]
    assert match_names(backbone, "block*.conv?") == ["block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2"]
    assert match_names(backbone, ["fc", "**.norm", "fc"]) == ["fc", "block1.norm", "block2.norm"]


def test_sites_stand_in_execution_order() -> None:
    backbone = Mlp()
    backbone._modules = dict(reversed(backbone._modules.items()))
    net = cbl.ContextLoop(backbone, "*st", X)
    assert [site.name for site in cbl.ContextLoop(backbone, "[fs]*", X).sites] == ["first", "second"]
    assert [site.name for site in net.sites] == ["first"]


def test_sites_named_in_another_order_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"names 'second' before 'first', but the backbone runs 'first' first: name them"
    ):
        cbl.ContextLoop(Mlp(), ["second", "first"], X)


def test_a_site_that_is_named_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="sites names 'first' 2 times: one site has one adapter, name it once"):
        cbl.ContextLoop(Mlp(), ["first", "second", "first"], X)
    assert len(cbl.ContextLoop(Mlp(), ["first", "[fs]*"], X).sites) == 2, "a glob may match what is named"


def test_observing_leaves_nothing_behind() -> None:
    backbone = ResidualCnn().train()
    buffers = {name: value.clone() for name, value in backbone.named_buffers()}
    observe(backbone, ["block1"], Call((torch.randn(2, 3, 8, 8),)))
    assert backbone.training
    assert all(torch.equal(value, buffers[name]) for name, value in backbone.named_buffers())
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("backbone", "site", "shape", "channel_dim"),
    [
        (nn.Conv2d(3, 5, 3), "0", (2, 3, 8, 8), 1),
        (nn.Conv1d(3, 5, 3), "0", (2, 3, 8), 1),
        (nn.Linear(7, 5), "0", (2, 6, 7), 2),
        (nn.Sequential(nn.Linear(7, 5), nn.ReLU()), "0", (2, 6, 7), 2),
        (nn.Sequential(nn.Conv1d(3, 5, 3), nn.ReLU()), "0", (2, 3, 8), 1),
        (nn.ReLU(), "0", (2, 3, 8, 8), 1),
        (nn.LayerNorm(7), "0", (2, 6, 7), 2),
    ],
)
def test_channel_axis(backbone: nn.Module, site: str, shape: tuple[int, ...], channel_dim: int) -> None:
    call = Call((torch.randn(shape),))
    assert build_sites(nn.Sequential(backbone), [site], call, None)[0].site.channel_dim == channel_dim


class Exit(nn.Module):
    """Returns its features and the logits of an early exit."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.conv(x))
        return h, self.fc(h.mean((2, 3)))


class Scaled(Exit):
    """Multiplies its features by one number per sample."""

    def __init__(self) -> None:
        super().__init__(classes=1)

    def forward(self, x: Tensor) -> Tensor:
        h, scale = super().forward(x)
        return h * torch.sigmoid(scale)[:, :, None, None]


class MixedTokens(nn.Module):
    """Mixes the tokens, as one half of an MLP-Mixer's block does: its last layer is as wide as there are tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(7), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.norm(x).transpose(1, 2)).transpose(1, 2)


class Turned(nn.Module):
    """Moves the channels to the front at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).transpose(1, 2)


@pytest.mark.parametrize(
    ("block", "shape", "channel_dim"),
    [
        (Exit(classes=5), (2, 3, 8, 8), 1),
        (Exit(classes=8), (2, 3, 8, 8), 1),  # as many classes as columns
        (Scaled(), (2, 3, 8, 8), 1),
        (MixedTokens(), (2, 6, 7), 2),
        (Turned(), (2, 6, 7), 1),
    ],
)
def test_the_channel_axis_is_told_by_what_made_the_states(
    block: nn.Module, shape: tuple[int, ...], channel_dim: int
) -> None:
    call = Call((torch.randn(shape),))
    assert build_sites(nn.Sequential(block), ["0"], call, None)[0].site.channel_dim == channel_dim


def test_broadcast_shape() -> None:
    assert cbl.Site("a", (2, 5, 4, 4), 1).broadcast_shape == (-1, 5, 1, 1)
    assert cbl.Site("a", (2, 4, 5), 2).broadcast_shape == (-1, 1, 5)
