"""Model cards: what the audit found of a loop, as Markdown for the hub."""

from __future__ import annotations

import math
import platform
import re
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from torchcbl.adapters import CUSTOM
from torchcbl.backbone.calls import Example
from torchcbl.sharing.options import describe_option
from torchcbl.sharing.storage import added_state

if TYPE_CHECKING:
    from torch import nn

    from torchcbl.audit import Audit
    from torchcbl.loop import ContextLoop

_HEADER = """---
library_name: torchcbl
tags:
- torchcbl
- pytorch
- feedback
- contextual-backpropagation-loops
---
"""


def model_card(
    net: ContextLoop, repo_id: str | None = None, *, include_backbone: bool = False, example: Example | None = None
) -> str:
    """Write a model card from `net.audit()`.

    It states structure and cost, which are measured here, and nothing about accuracy, which is not.

    Args:
        net: The loop.
        repo_id: Where it will be, "user/name"; None for a folder.
        include_backbone: Whether the backbone's own weights are there too.
        example: What to measure on, where the backbone fails on a batch that is made up; see `ContextLoop.audit`.

    Returns:
        Markdown with the YAML header that the hub reads.

    Example:
        >>> import torch
        >>> from torchcbl import ContextLoop
        >>> backbone = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
        >>> card = model_card(ContextLoop(backbone, sites="1", example=torch.zeros(2, 4)))
        >>> print(card[card.index("| Site"):card.index("## Cost")])
        | Site | h | Adapter | Live | Parameters |
        | :-- | :-- | :-- | :-- | --: |
        | `1` | B x 8 | `Film` | live | 1,040 |
    """
    audit = net.audit(example)
    kind = type(net.backbone)
    measured_on = "random input" if example is None else "an example"
    weights = "also holds the backbone's weights" if include_backbone else "does not hold the backbone's weights"
    title = repo_id if repo_id is not None else f"Feedback loop around {audit.backbone}"
    return "\n".join(
        [
            f"{_HEADER}\n# {_plain(title)}\n",
            f"Top-down feedback for a {_code(f'{kind.__module__}.{kind.__qualname__}')}, made with torchcbl. The "
            "network's output becomes a context z; adapters use it to refine the hidden states h of the sites below, "
            f"and the output is computed again, {audit.steps} times. This {_place(repo_id)} {weights}.\n",
            f"No claim of accuracy is made here: what follows is structure and cost, measured on {measured_on}. "
            "Compare with `net.refine(x, steps=0)`, which is the backbone alone, on data of your own.\n",
            f"## Load\n\n```python\n{_snippet(net, repo_id, include_backbone, example is not None)}\n```\n",
            f"## Sites\n\n{_sites(audit)}\n",
            f"## Cost\n\n{_table('Quantity', 'Value', _costs(net, audit))}\n",
            f"## Settings\n\n{_table('Setting', 'Value', _settings(net, audit))}\n",
            f"## Made with\n\n{_table('Package', 'Version', _versions(net.backbone))}\n",
        ]
    )


def _place(repo_id: str | None) -> str:
    return "folder" if repo_id is None else "repository"


def _snippet(net: ContextLoop, repo_id: str | None, include_backbone: bool, needs_example: bool) -> str:
    same = "architecture and module names" if include_backbone else "architecture, module names and weights"
    kind = _line(type(net.backbone).__name__)
    lines = ["import torchcbl", "", f"# backbone: the {kind} this loop was made for, of the same {same}"]
    given, adapter = "", net.config.adapter
    if adapter == CUSTOM or (isinstance(adapter, dict) and CUSTOM in adapter.values()):
        lines.append("# adapter: the class or factory it was made with, whose code is not in the files")
        given += ", adapter=adapter"
    if net.config.custom_context:
        lines.append("# context: the torchcbl.Context it was made with, whose map's code is not in the files")
        given += ", context=context"
    for name in ("solver", "gradient", "halting"):
        if describe_option(getattr(net.config.settings, name)) == CUSTOM:
            lines.append(f"# {name}: the one it was made with, whose code is not in the files")
            given += f", {name}={name}"
    if needs_example:
        lines.append("# example: what the backbone is called with, for one batch")
        given += ", example=example"
    if repo_id is None:
        lines += ['folder = "."  # where this file is', f"net = torchcbl.load(folder, backbone{given})"]
    else:
        lines.append(f'net = torchcbl.ContextLoop.from_pretrained("{_line(repo_id)}", backbone{given})')
    return "\n".join([*lines, "print(net.audit())"])


def _sites(audit: Audit) -> str:
    rows = ["| Site | h | Adapter | Live | Parameters |", "| :-- | :-- | :-- | :-- | --: |"]
    for a in audit.adapters:
        shape = " x ".join(map(str, ("B", *a.shape[1:])))
        live = "live" if a.live else "DEAD: it cannot move the output"
        rows.append(f"| {_code(a.site)} | {shape} | {_code(a.adapter)} | {live} | {a.parameters:,} |")
    return "\n".join(rows)


def _costs(net: ContextLoop, audit: Audit) -> dict[str, str]:
    size = sum(value.numel() * value.element_size() for value in added_state(net).values())
    backbone, added = audit.backbone_parameters, audit.added_parameters
    factor = "not known" if math.isnan(audit.cost) else f"{audit.cost:.2f} times the backbone's"
    return {
        "Parameters added": f"{added:,}" + (f" ({added / backbone:.1%} of the backbone's)" if backbone else ""),
        "Parameters of the backbone": f"{backbone:,}",
        "Size of what is added": f"{size / 1000:,.1f} kB",
        "FLOPs per sample of y_0, the backbone's output": f"{audit.flops_first:,.0f}",
        "FLOPs per sample of each step": f"{audit.flops_step:,.0f}",
        f"FLOPs at T = {audit.steps}": factor,
    }


def _settings(net: ContextLoop, audit: Audit) -> dict[str, str]:
    context = net.config.context
    per = "" if context.per is None else f" per {context.per}"
    own = ", a map of its own" if net.config.custom_context else ""
    detached = ", detached" if context.detach else ""
    return {
        "steps (T)": str(audit.steps),
        "alpha (weight of the old state)": f"{audit.alpha:g}",
        "schedule": _code(audit.schedule),
        "step_norm": _code(audit.step_norm) if audit.step_norm else "no batch norm above the lowest site",
        "context": f"{context.dim} features of {_code(context.source)}{per}{detached}{own}",
        "cut": _code(audit.cut),
        **({"solving": _code(audit.solving)} if audit.solving else {}),
    }


def _versions(backbone: nn.Module) -> dict[str, str]:
    """Versions of what a loaded loop may depend on, the package of the backbone's class included."""
    packages = dict.fromkeys(["torchcbl", "torch", "safetensors", type(backbone).__module__.partition(".")[0]])
    found = {"python": platform.python_version()}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # a module of the user's own
            continue
    return found


def _table(left: str, right: str, rows: dict[str, str]) -> str:
    lines = [
        f"| {left} | {right} |",
        "| :-- | :-- |",
        *(f"| {_plain(name)} | {value} |" for name, value in rows.items()),
    ]
    return "\n".join(lines)


def _line(text: str) -> str:
    """Keep text on one line, and out of quotes and fences."""
    return re.sub(r'[\s"\\`]+', " ", text).strip()


def _plain(text: str) -> str:
    """Escape what Markdown would read as its own."""
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", " ".join(text.split()))


def _code(text: str) -> str:
    """Quote text as code, in a cell of a table: names of modules may hold anything but dots."""
    text = " ".join(text.split()).replace("|", r"\|")
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence, pad = "`" * (longest + 1), " " if longest else ""
    return f"{fence}{pad}{text}{pad}{fence}"
