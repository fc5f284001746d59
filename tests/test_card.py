"""Model cards."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import torchcbl as cbl
from backbones import Mlp, ResidualCnn
from torchcbl.adapters import Gate
from torchcbl.sharing.card import model_card

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def snippet(card: str) -> str:
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_card_says_what_the_audit_found() -> None:
    hub = pytest.importorskip("huggingface_hub")
    net = cbl.ContextLoop(ResidualCnn(), ["block1", "block2"], IMAGES, context=cbl.Context(dim=5), alpha=0.1)
    text, audit = model_card(net, "me/net"), net.audit()
    card = hub.ModelCard(text)
    assert card.data.to_dict()["library_name"] == "torchcbl"
    assert "torchcbl" in card.data.tags
    assert card.data.license is None
    assert card.text.lstrip().startswith("# me/net\n")
    low, high = audit.adapters
    for site in (low, high):
        assert f"| `{site.site}` | B x 6 x 8 x 8 | `Film` | live | {site.parameters:,} |" in text
    for row in (
        f"| Parameters added | {audit.added_parameters:,} ({audit.added_parameters / audit.backbone_parameters:.1%} of",
        f"| FLOPs per sample of each step | {audit.flops_step:,.0f} |",
        f"| FLOPs at T = 2 | {audit.cost:.2f} times the backbone's |",
        "| alpha (weight of the old state) | 0.1 |",
        "| schedule | `repropagate` |",
        r"| step\_norm | `per_step` |",
        "| context | 5 features of `logits` |",
        f"| torch | {torch.__version__} |",
        f"| torchcbl | {cbl.__version__} |",
        "No claim of accuracy is made",
        "does not hold the backbone's weights",
        "`backbones.ResidualCnn`",
    ):
        assert row in text, row


def test_a_folder_s_snippet_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    net = cbl.ContextLoop(ResidualCnn(), ["block1", "block2"], IMAGES)
    net.save(tmp_path)
    monkeypatch.chdir(tmp_path)
    exec(snippet(model_card(net)), {"backbone": net.backbone})
    assert "block1" in capsys.readouterr().out


def test_the_card_of_a_loop_with_code_of_its_own_says_what_to_pass() -> None:
    context = cbl.Context(dim=3, map=lambda features, dim: nn.Linear(features, dim))
    net = cbl.ContextLoop(
        Mlp(), "first", torch.randn(3, 6), adapter={"first": functools.partial(Gate)}, context=context
    )
    text = model_card(net, "me/net")
    assert 'from_pretrained("me/net", backbone, adapter=adapter, context=context)' in text
    assert "# adapter: the class or factory" in text
    assert "| context | 3 features of `logits`, a map of its own |" in text


class Sooner(cbl.Tolerance):
    """A stopping rule of the caller's own."""


def test_the_card_of_a_loop_with_a_rule_of_its_own_says_what_to_pass(tmp_path: Path) -> None:
    net = cbl.ContextLoop(Mlp(), "first", torch.randn(3, 6), halting=Sooner(1e-3))
    net.save(tmp_path)
    text = snippet(model_card(net)).replace('folder = "."', f"folder = {str(tmp_path)!r}")
    assert "# halting: the one it was made with" in text
    names: dict[str, object] = {"backbone": net.backbone, "halting": Sooner(1e-3)}
    exec(text, names)
    assert names["net"].config.settings == net.config.settings


def test_the_card_names_dead_adapters() -> None:
    net = cbl.ContextLoop(Mlp(), ["first", "second"], torch.randn(3, 6), schedule="literal", allow_dead=True)
    assert "| `first` | B x 8 | `Film` | DEAD: it cannot move the output |" in model_card(net)
    assert "| `second` | B x 8 | `Film` | live |" in model_card(net)


def test_names_cannot_break_the_card() -> None:
    backbone = nn.Sequential()
    backbone.add_module("a|b`c\n# d", nn.Linear(4, 4))
    backbone.add_module("head", nn.Linear(4, 2))
    backbone.__class__ = type('Net"""\n```\n---\nlicense: x', (nn.Sequential,), {})
    net = cbl.ContextLoop(backbone, cbl.sites(backbone)[:1], torch.randn(2, 4), cut="replayed")
    text = model_card(net, "me/_x_*y*|z")
    assert r"| `` a\|b`c # d `` | B x 4 | `Film` | live |" in text
    assert text.count("\n---\n") == 1
    assert text.count("\n```") == 2
    assert "\n# me/\\_x\\_\\*y\\*\\|z\n" in text
    compile(snippet(text), "card", "exec")
    assert text.startswith("---\nlibrary_name: torchcbl\n")
