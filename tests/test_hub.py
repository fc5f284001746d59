"""Sharing on the hub: the real huggingface_hub, talking to a local server."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from backbones import Mlp, ResidualCnn
from hub_server import READER, WRITER, HubServer
from test_card import snippet
from torchcbl.adapters import Gate
from torchcbl.gradients import Implicit
from torchcbl.sharing.card import model_card
from torchcbl.sharing.hub import from_pretrained, push_to_hub
from torchcbl.solvers import Anderson

hub = pytest.importorskip("huggingface_hub")

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))
SAVED = {"README.md", "adapters.safetensors", "config.json"}

Push = Callable[..., str]
Pull = Callable[..., cbl.ContextLoop]


@pytest.fixture(autouse=True)
def _nobody_is_logged_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    constants = {
        "HF_HUB_CACHE": str(tmp_path / "default-cache"),
        "HF_TOKEN_PATH": str(tmp_path / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,  # its storage is another service; the hub takes plain LFS as well
    }
    for name, value in constants.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def push(server: HubServer) -> Push:
    return functools.partial(push_to_hub, endpoint=server.endpoint, token=WRITER)


@pytest.fixture
def pull(server: HubServer, tmp_path: Path) -> Pull:
    return functools.partial(from_pretrained, endpoint=server.endpoint, cache_dir=tmp_path / "cache", token=READER)


def trained(net: cbl.ContextLoop) -> cbl.ContextLoop:
    with torch.no_grad():
        for parameter in [*net.adapters.parameters(), *net.context.parameters()]:
            parameter.normal_(std=0.3)
    return net.eval()


@pytest.fixture
def net() -> cbl.ContextLoop:
    return trained(cbl.ContextLoop(ResidualCnn(), ["block1", "block2"], IMAGES, context=cbl.Context(dim=5), alpha=0.1))


class Residual(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        same = stride == 1 and before == after
        self.downsample = nn.Identity() if same else nn.Conv2d(before, after, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.downsample(x))


class ResNet18(nn.Module):
    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU())
        widths = [64, 64, 128, 256, 512]
        for index, (before, after) in enumerate(itertools.pairwise(widths), start=1):
            stage = nn.Sequential(Residual(before, after, 1 if index == 1 else 2), Residual(after, after, 1))
            self.add_module(f"layer{index}", stage)
        self.fc = nn.Linear(512, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(x)))))
        return self.fc(h.mean((2, 3)))


def test_what_is_pushed_can_be_pulled(net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull) -> None:
    url = push(net, "me/net", commit_message="Share it")
    assert url == f"{server.endpoint}/me/net/commit/{server.commits('me/net')[-1]}"
    assert server.messages == ["Share it"]
    assert server.files("me/net").keys() == SAVED | {".gitattributes"}
    again = pull("me/net", net.backbone)
    assert torch.equal(again(IMAGES), net(IMAGES))
    assert not torch.equal(net(IMAGES), net.backbone(IMAGES))
    assert not again.training


def test_only_a_save_is_downloaded_and_only_once(
    net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull
) -> None:
    push(net, "net")  # a name alone is one's own
    pull("me/net", net.backbone)
    resolved = {line.rpartition("/")[2] for line in server.asked if line.startswith("GET /me/net/resolve")}
    assert resolved == {"config.json"}  # the other is in LFS
    assert sum(line.startswith("GET /lfs/") for line in server.asked) == 1
    server.asked.clear()
    pull("me/net", net.backbone)
    assert not any("resolve" in line or "lfs" in line for line in server.asked)


def test_a_film_loop_on_a_resnet_is_a_few_hundred_kilobytes(server: HubServer, push: Push, pull: Pull) -> None:
    x = torch.randn(2, 3, 32, 32)
    sites = ["layer1", "layer2", "layer3", "layer4"]
    net = trained(cbl.ContextLoop(ResNet18(), sites, x, context=cbl.Context(dim=32)))
    push(net, "me/resnet18")
    files = server.files("me/resnet18")
    assert sum(map(len, files.values())) < 400_000
    assert sum(p.numel() * p.element_size() for p in net.backbone.parameters()) > 40_000_000
    safetensors = pytest.importorskip("safetensors.torch")
    names = safetensors.load(files["adapters.safetensors"]).keys()
    assert {name.split(".")[0] for name in names} == {"adapters", "context", "step_norm"}
    assert torch.equal(pull("me/resnet18", net.backbone)(x), net(x))


def test_the_backbone_goes_along_on_request_and_away_again(
    net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull
) -> None:
    push(net, "me/net", include_backbone=True)
    assert server.files("me/net").keys() == SAVED | {".gitattributes", "backbone.safetensors"}
    assert b"also holds the backbone's weights" in server.files("me/net")["README.md"]
    assert torch.equal(pull("me/net", ResidualCnn().eval())(IMAGES), net(IMAGES))
    push(net, "me/net")
    assert server.files("me/net").keys() == SAVED | {".gitattributes"}
    assert len(server.commits("me/net")) == 3  # the one that made it, and one per push
    with pytest.raises(ValueError, match="the backbone differs from what was saved: 'stem.weight' has other values"):
        pull("me/net", ResidualCnn())


def test_revisions(net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull) -> None:
    push(net, "me/net")
    old, first = net(IMAGES), server.commits("me/net")[-1]
    trained(net)
    push(net, "me/net", revision="second")
    assert server.commits("me/net")[-1] == first
    assert torch.equal(pull("me/net", net.backbone)(IMAGES), old)
    assert torch.equal(pull("me/net", net.backbone, revision=first)(IMAGES), old)
    assert torch.equal(pull("me/net", net.backbone, revision="second")(IMAGES), net(IMAGES))
    push(net, "me/net", revision="second")  # it is there by now
    with pytest.raises(FileNotFoundError, match=r"cannot load 'me/net': http.* has the repository, but not that rev"):
        pull("me/net", net.backbone, revision="third")


def test_private_repositories(net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull) -> None:
    push(net, "me/secret", private=True)
    assert server.private == {"me/secret"}
    with pytest.raises(FileNotFoundError, match=r"no such repository that you may read \(HTTP 401\).*hf auth login"):
        pull("me/secret", net.backbone, token=False)
    assert torch.equal(pull("me/secret", net.backbone)(IMAGES), net(IMAGES))


def test_a_folder_needs_no_hub(net: cbl.ContextLoop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net.save(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert torch.equal(from_pretrained(tmp_path / "saved", net.backbone)(IMAGES), net(IMAGES))
    with pytest.raises(ValueError, match="is a folder here, which has no revision 'v1'"):
        from_pretrained(str(tmp_path / "saved"), net.backbone, revision="v1")
    with pytest.raises(ImportError, match=r"needs huggingface_hub.*pip install 'torchcbl\[hub\]'"):
        from_pretrained("me/net", net.backbone)
    with pytest.raises(ImportError, match=r"needs huggingface_hub.*pip install 'torchcbl\[hub\]'"):
        push_to_hub(net, "me/net")


def own_gate(site: cbl.Site, context_dim: int) -> nn.Module:
    return Gate(site, context_dim, scale=1.0)


def test_code_is_never_downloaded(push: Push, pull: Pull) -> None:
    x = torch.randn(3, 6)
    gate = own_gate
    context = cbl.Context(dim=3, map=lambda features, dim: nn.Linear(features, dim, bias=False))
    net = cbl.ContextLoop(Mlp(), "first", x, adapter=gate, context=context)
    push(net, "me/own")
    with pytest.raises(ValueError, match="adapters of the caller's own"):
        pull("me/own", net.backbone)
    assert torch.equal(pull("me/own", net.backbone, adapter=gate, context=context)(x), net(x))


class Sooner(cbl.Tolerance):
    """A stopping rule of the caller's own."""


def test_rules_are_taken_by_the_loop_s_own_method(server: HubServer, push: Push, tmp_path: Path) -> None:
    x = torch.randn(3, 6)
    net = cbl.ContextLoop(Mlp(), "first", x, halting=Sooner(1e-3))
    push(net, "me/own")
    pull = functools.partial(
        cbl.ContextLoop.from_pretrained, endpoint=server.endpoint, cache_dir=tmp_path / "cache", token=READER
    )
    with pytest.raises(ValueError, match=r"a halting of the caller's own.*pass one as load\(..., halting=...\)"):
        pull("me/own", net.backbone)
    rules = {"solver": "anderson", "gradient": "implicit", "halting": Sooner(1e-2)}
    found = pull("me/own", net.backbone, **rules).config.settings
    assert (found.solver, found.gradient, found.halting) == (Anderson(), Implicit(), Sooner(1e-2))


def test_the_loop_s_own_method_takes_all_that_the_function_does() -> None:
    own, function = (list(inspect.signature(f).parameters) for f in (cbl.ContextLoop.from_pretrained, from_pretrained))
    assert own == function


def test_without_network_the_cache_serves(
    net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull, tmp_path: Path
) -> None:
    push(net, "me/net")
    pull("me/net", net.backbone)
    server.__exit__()
    assert torch.equal(pull("me/net", net.backbone)(IMAGES), net(IMAGES))
    with pytest.raises(
        ConnectionError, match=r"cannot load 'me/net': http.* cannot be reached \(ConnectError.*network"
    ):
        pull("me/net", net.backbone, cache_dir=tmp_path / "empty")
    with pytest.raises(ConnectionError, match=r"cannot push to 'me/net': http.* cannot be reached.*HF_HUB_OFFLINE"):
        push(net, "me/net")


@pytest.mark.parametrize("source", ["no/such/folder", "two words", Path("somewhere")])
def test_neither_folder_nor_repository(net: cbl.ContextLoop, server: HubServer, pull: Pull, source: str | Path) -> None:
    with pytest.raises(ValueError, match=r"is neither a folder that is there nor the name.*'user/name'"):
        pull(source, net.backbone)
    assert server.asked == []


def test_a_repository_that_is_not_there_or_holds_something_else(
    net: cbl.ContextLoop, server: HubServer, pull: Pull
) -> None:
    with pytest.raises(FileNotFoundError, match=r"cannot load 'me/nte': http.*no such repository.*\(HTTP 404\).*name"):
        pull("me/nte", net.backbone)
    server.commit("me/bert", "main", {"config.json": b"{}", "model.safetensors": b"", "notes.md": b""})
    with pytest.raises(FileNotFoundError, match=r"'me/bert' on http.* holds no saved loop: there is no adapters.safet"):
        pull("me/bert", net.backbone)


def test_who_may_not_push(net: cbl.ContextLoop, server: HubServer, push: Push) -> None:
    for token, repo, message in [
        (False, "me/net", r"cannot push to 'me/net': http.* does not know you \(HTTP 401\). Run `hf auth login`"),
        ("hf_expired", "me/net", r"does not know you \(HTTP 401\)"),
        (READER, "me/net", r"does not allow it \(HTTP 403\). Ask the owner for access, or pass a token"),
        (WRITER, "you/net", r"cannot push to 'you/net': http.* does not allow it \(HTTP 403\)"),
    ]:
        with pytest.raises(PermissionError, match=message):
            push(net, repo, token=token)
    assert server.commits("me/net") == []
    with pytest.raises(ValueError, match=r"repo_id must be 'user/name' .*got 'a/b/c'"):
        push(net, "a/b/c")


def test_who_may_not_read(net: cbl.ContextLoop, server: HubServer, push: Push, pull: Pull) -> None:
    push(net, "me/net")
    server.status = 403
    with pytest.raises(PermissionError, match=r"cannot load 'me/net': http.* does not allow it \(HTTP 403\)"):
        pull("me/net", net.backbone)


def test_other_errors_stay_what_they_are(net: cbl.ContextLoop, server: HubServer, push: Push) -> None:
    server.status = 418
    with pytest.raises(hub.errors.HfHubHTTPError, match="418"):
        push(net, "me/net")


def test_the_card_goes_along(net: cbl.ContextLoop, server: HubServer, push: Push) -> None:
    push(net, "net")
    assert server.files("me/net")["README.md"].decode() == model_card(net, "me/net")


def test_the_card_s_snippet_runs(
    net: cbl.ContextLoop, server: HubServer, push: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(net, "me/net")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.endpoint)
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    names: dict[str, object] = {"backbone": net.backbone}
    exec(snippet(server.files("me/net")["README.md"].decode()), names)
    assert torch.equal(names["net"](IMAGES), net(IMAGES))
