"""The stability page of a trained run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

import torchcbl as cbl
from torchcbl.lab.cli import main
from torchcbl.lab.data import load_dataset
from torchcbl.lab.inspection import rebuild
from torchcbl.lab.recipe import load_recipe
from torchcbl.lab.report.stability import render, verdict, write_stability
from torchcbl.lab.runs import Run
from torchcbl.lab.stability import Stability, examine, join
from torchcbl.lab.training import train


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stability")
    recipe = load_recipe("demo", {"seeds": "1", "epochs": "1", "width": "4", "validation_size": "70"})
    (out / "recipe.toml").write_text(recipe.as_toml())
    for arm in ("standard", "cbl"):
        train(Run(recipe, arm, 0, out))
    return out


@pytest.fixture(scope="module")
def found(study: Path) -> Stability:
    return examine(study / "runs" / "cbl-seed0", samples=100, steps=12)


def test_it_measures_the_validation_part_in_batches(study: Path, found: Stability) -> None:
    assert found.samples == 70
    assert len(found.outputs_accuracy) == len(found.outputs_loss) == 13
    assert found.report.lengths.shape == (12, 70)
    assert found.report.eigenvalues.shape == (70, 10)
    assert set(found.solved) == {"picard", "anderson", "broyden", "newton"}
    assert found.solved["anderson"][0] >= found.solved["picard"][0]
    model = rebuild(study / "runs" / "cbl-seed0")
    assert isinstance(model, cbl.ContextLoop)


def test_batches_joined_are_one_batch() -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 4)
    net = cbl.ContextLoop(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3)), "0", x, "additive")
    torch.nn.init.normal_(net.adapters["0"].up.weight)  # type: ignore[union-attr,arg-type]
    whole, parts = cbl.contraction(net, x), join([cbl.contraction(net, x[:4]), cbl.contraction(net, x[4:])])
    for name in ("spectral_norm", "spectral_radius", "certified", "lengths", "errors", "fixed_point", "status"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-3, atol=1e-5)


def test_the_page_stands_alone_and_tells_what_came_out(found: Stability) -> None:
    page = render(found)
    for sentence in verdict(found):
        assert sentence.split(":")[0][:40] in page
    assert "Validation accuracy" in page
    assert page.count("<figure>") == 4
    assert "http" not in page.replace("http://www.w3.org/", "")
    assert "A fixed point was found for" in verdict(found)[0]
    assert f"Trained for T = {found.trained_steps}" in verdict(found)[3]


def test_the_files(study: Path, found: Stability) -> None:
    folder = study / "runs" / "cbl-seed0"
    diverging = dataclasses.replace(found, outputs_loss=(*found.outputs_loss[:-1], float("nan")))
    page = write_stability(diverging, folder)
    assert page.read_text("utf-8") == render(found)
    text = (folder / "stability.json").read_text("utf-8")
    kept = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert kept["validation_loss_by_step"][-1] is None
    assert kept["samples"] == 70
    assert kept["data"] == "digits, validation part"
    assert len(kept["quantiles"]["spectral_norm"]) == 5
    assert kept["solvers"]["picard"]["evaluations"] >= 1


def test_a_certified_loop_shows_its_bound(found: Stability) -> None:
    torch.manual_seed(0)
    x = torch.randn(70, 4)
    backbone = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 3))
    net = cbl.make_contractive(cbl.ContextLoop(backbone, "0", x, "additive"), 0.5)
    torch.nn.init.normal_(net.adapters["0"].up.weight)  # type: ignore[union-attr,arg-type]
    certain = dataclasses.replace(found, report=cbl.contraction(net, x, steps=12))
    assert "Certified: the loop is a contraction with gamma <= 0." in verdict(certain)[1]
    assert render(certain).count("<figure>") == 5
    with torch.no_grad():
        net.bound = None
        net.context.map.limit = 1e3  # type: ignore[assignment]
        net.adapters["0"].up.limit = 1e3  # type: ignore[union-attr,assignment]
    uncertain = dataclasses.replace(found, report=cbl.contraction(net, x, steps=12))
    assert "Theorem 3.1 promises nothing here" in verdict(uncertain)[1]


def test_from_the_command_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = study / "runs" / "cbl-seed0"
    assert main(["stability", str(folder), "--samples", "20", "--steps", "5"]) == 0
    printed = capsys.readouterr().out
    assert f"page: {folder / 'stability.html'}" in printed
    assert "spectral norm at the fixed point (lower bound on gamma)" in printed
    assert json.loads((folder / "stability.json").read_text("utf-8"))["samples"] == 20


def test_a_few_samples_are_of_all_classes(study: Path) -> None:
    """Data often come sorted by class: the first ones would be of one class alone."""
    data = load_dataset(load_recipe("demo", {"validation_size": "70"}))
    labels = torch.cat([labels for _, labels in data.batches("validation", 16, limit=20)])
    assert torch.bincount(labels, minlength=10).tolist() == [2] * 10
    assert sum(len(labels) for _, labels in data.batches("validation", 16, limit=700)) == 70


def test_fewer_steps_than_it_was_trained_for_are_refused(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = rebuild(study / "runs" / "cbl-seed0")
    assert isinstance(model, cbl.ContextLoop)
    model.config = dataclasses.replace(model.config, steps=4)
    monkeypatch.setattr("torchcbl.lab.stability.rebuild", lambda folder: model)
    with pytest.raises(ValueError, match="was trained for T = 4 steps: run it for at least as many, got steps=3"):
        examine(study / "runs" / "cbl-seed0", samples=10, steps=3)


def test_other_data_than_the_run_s_are_refused(study: Path) -> None:
    noted = study / "data.json"
    noted.write_text('{"sizes": {}}')
    try:
        with pytest.raises(ValueError, match="was made with other data: sizes"):
            examine(study / "runs" / "cbl-seed0", samples=10, steps=2)
    finally:
        noted.unlink()


def test_what_has_no_stability(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, message in [
        ([str(study / "runs" / "standard-seed0")], "standard-seed0 is no `ContextLoop`: it has no loop"),
        ([str(study / "runs" / "cbl-seed7")], "holds no weights"),
        ([str(study)], "is no run: give OUT/runs/<arm>-seed<k>"),
        ([str(study / "runs" / "cbl-seed0"), "--samples", "0"], "samples must be >= 1 and steps >= 2, got samples=0"),
    ]:
        assert main(["stability", *words]) == 2
        assert message in capsys.readouterr().err
