"""Looking into models from the command line: what can be a site, and what a trained loop does."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

import torchcbl as cbl
from torchcbl.backbone.calls import Call
from torchcbl.backbone.layout import find_layout
from torchcbl.backbone.observation import observe
from torchcbl.lab.arms import find_arm
from torchcbl.lab.data.dataset import Form
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import DERIVED_ARMS, read_recipe
from torchcbl.lab.runs import Run
from torchcbl.lab.sources import SOURCES
from torchcbl.lab.weights import load_weights


def find_model(spec: str) -> nn.Module:
    """Build a model by name.

    Args:
        spec: "StandardCNN", "package.module:callable" or "path/file.py:callable"; called without arguments.

    Raises:
        ValueError: There is no such thing, or calling it fails.
        TypeError: It does not give an nn.Module.

    Example:
        >>> type(find_model("torch.nn:Identity")).__name__
        'Identity'
    """
    if spec == StandardCNN.__name__:
        return StandardCNN()
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"model '{spec}' must be StandardCNN, package.module:callable or path/file.py:callable.")
    module = _import(place)
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        raise ValueError(f"{place} has no '{name}'{f': did you mean {close[0]!r}?' if close else '.'}")
    try:
        model = getattr(module, name)()
    except Exception as error:  # it is the user's code, which may raise anything
        raise ValueError(f"calling {spec} without arguments failed: {type(error).__name__}: {error}") from error
    if not isinstance(model, nn.Module):
        raise TypeError(f"{spec} must give an nn.Module, got {type(model).__name__}.")
    return model


def describe_sites(spec: str, shape: Sequence[int] | None = None) -> str:
    """List a model's possible sites: name, type and parameters, and with an input the output's shape.

    Args:
        spec: As for `find_model`.
        shape: Of the input; none runs nothing and lists every submodule.

    Raises:
        ValueError: The model is not found, or does not run on such an input.
        TypeError: It is no nn.Module.
    """
    model = find_model(spec)
    if shape is None:
        note = "every submodule is listed; --input SHAPE keeps those that can be a site, with the shape of h"
        return _columns([_site_row(model, name) for name in cbl.sites(model)]) + f"\n\n{note}"
    try:
        example = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"an input of shape {tuple(shape)} cannot be made: {reason}") from error
    try:
        names = cbl.sites(model, example)
    except Exception as error:  # it is the user's code, which may raise anything
        raise ValueError(f"{spec} does not run on an input of shape {tuple(shape)}: {error}") from error
    seen = observe(model, names, Call.from_example(example))
    return _columns([(*_site_row(model, name), _shown(seen[name].output)) for name in names])


def rebuild(folder: Path) -> nn.Module:
    """Rebuild a finished run's model from its recipe and weights.

    Args:
        folder: OUT/runs/<arm>-seed<k>.

    Raises:
        ValueError: The folder's name is none of a run, or the weights do not fit.
        FileNotFoundError: There is no recipe, or no weights: the run is not finished.
    """
    run = find_run(folder)
    if not run.model.is_dir():
        raise FileNotFoundError(f"{run.folder} holds no weights: {_how_to_train(run)}.")
    form = form_of(run)
    model = find_arm(run.arm).build(run.recipe, form.shape, form.num_classes, run.seed)
    return load_weights(model, run.model)


def form_of(run: Run) -> Form:
    """Say what a finished run's network takes and gives.

    Raises:
        FileNotFoundError: It was not kept.
    """
    form = Form.load(run.model)
    if form is not None:
        return form
    source = SOURCES[run.recipe.data]
    if source.shape is None:
        raise FileNotFoundError(f"{run.model} holds no form.json: {_how_to_train(run)}.")
    return Form(source.shape, source.classes)


def describe_run(folder: Path) -> str:
    """Audit a finished run's loop, as text.

    Raises:
        ValueError: The folder's name is none of a run, or the weights do not fit.
        FileNotFoundError: There is no recipe, or no weights.
    """
    model = rebuild(folder)
    if isinstance(model, cbl.ContextLoop):
        return str(model.audit())
    return f"{folder.resolve().name} is no `ContextLoop`: it has no loop to audit."


def find_run(folder: Path) -> Run:
    """Find a run by its folder.

    Raises:
        ValueError: The folder's name is none of a run.
        FileNotFoundError: There is no recipe beside it.
    """
    folder = folder.resolve()
    match = re.fullmatch(r"(.+)-seed(\d+)", folder.name)
    if match is None:
        raise ValueError(f"{folder} is no run: give OUT/runs/<arm>-seed<k>, as in runs/demo/runs/cbl-seed0.")
    if match[1] in DERIVED_ARMS:
        source, step = DERIVED_ARMS[match[1]]
        raise ValueError(
            f"{match[1]} is not trained: it is {source} read at step {step}. "
            f"Give {folder.parent / source}-seed{match[2]} in its place."
        )
    out = folder.parent.parent
    return Run(read_recipe(out / "recipe.toml"), find_arm(match[1]).name, int(match[2]), out)


def _how_to_train(run: Run) -> str:
    if run.record.exists():  # a run that has one is not repeated
        return f"delete {run.record} and run the same `torchcbl compare` again, which repeats this run alone"
    return "run the same `torchcbl compare` until it is finished"


def _import(place: str) -> ModuleType:
    """Import a module by name, from the current folder too, or from a file."""
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, str(Path.cwd()))
            return importlib.import_module(place)
        sys.path.insert(0, str(Path(place).resolve().parent))  # for what lies beside it, as `python FILE` has it
        found = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert found is not None
        assert found.loader is not None
        module = importlib.util.module_from_spec(found)
        sys.modules.setdefault(found.name, module)  # dataclasses look their module up there
        found.loader.exec_module(module)
        return module
    except Exception as error:  # it is the user's code, which may raise anything
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


def _site_row(model: nn.Module, name: str) -> tuple[str, str, str]:
    part = model.get_submodule(name)
    count = sum(parameter.numel() for parameter in part.parameters())
    return name, type(part).__name__, f"{count:,} parameters"


def _shown(output: object) -> str:
    layout = find_layout(output)
    assert layout is not None  # what has no tensor is no site
    return f"h: (B, {', '.join(map(str, layout.read(output).shape[1:]))}){layout.where()}"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return "none: the model has no submodule that runs exactly once and returns one floating-point tensor"
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
