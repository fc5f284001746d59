"""How a loop is run: what is checked, what can be changed at call time, what is saved."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from subject import awaken
from torchcbl.gradients import Gradient, Implicit, Phantom, Truncated
from torchcbl.halting import Agreement, Halting, Never, Progress, Tolerance
from torchcbl.sharing.options import describe_option, restore_option
from torchcbl.solvers import Anderson, Broyden, Newton, Picard, Solver


def build(**options: object) -> cbl.ContextLoop:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    example = torch.randn(6, 4, dtype=torch.float64)
    net = cbl.ContextLoop(backbone, "1", example, adapter="additive", steps=30, **options)  # type: ignore[arg-type]
    return awaken(net)


X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_settings_of_the_loop_hold_in_calls_and_may_be_changed_there() -> None:
    net = build(solver="anderson", gradient="implicit", halting=Tolerance(1e-8)).eval()
    with torch.no_grad():
        own = net.refine(X)
        plain = net.refine(X, solver="picard", halting=Never())
        long = net.refine(X, solver="picard", halting=Never(), steps=300)
    assert (own.steps < 30).all()
    assert (own.status == cbl.Status.converged).all()
    assert (plain.steps == 30).all()
    torch.testing.assert_close(own.output, long.output, rtol=0, atol=1e-7)
    assert torch.equal(net(X), net.refine(X).output)
    assert len(own.outputs) == 31


def test_every_setting_is_told() -> None:
    text = repr(build(solver=Picard(damping=0.5), gradient="implicit", halting=Tolerance(1e-3)))
    assert "solver=Picard(damping=0.5), gradient=Implicit(" in text
    assert "halting=Tolerance(residual=0.001)" in text
    assert "solver" not in repr(build())


def test_unknown_settings_are_refused() -> None:
    for options, message in [
        ({"solver": "secant"}, "solver must be one of 'picard', .* got 'secant'"),
        ({"gradient": "magic"}, "gradient must be one of 'bptt', .* got 'magic'"),
        ({"raise_on": "exploded"}, "raise_on must name statuses, 'converged', .* got 'exploded'"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(**options)
    for options, message in [
        ({"solver": Anderson}, r"got the class Anderson: pass an object, Anderson\(\)"),
        ({"gradient": Implicit}, r"got the class Implicit: pass an object, Implicit\(\)"),
        ({"halting": 1e-4}, r"halting must be a stopping rule such as Tolerance\(1e-4\)"),
        ({"halting": Tolerance}, r"got the class Tolerance: pass an object, Tolerance\(\)"),
        ({"raise_on": 3}, r"raise_on must name one status or several, as \('diverged', 'non_finite'\), got 3"),
    ]:
        with pytest.raises(TypeError, match=message):
            build(**options)


class Swallowing(nn.Module):
    """Takes any keyword and reads none, as many networks of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.top = nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, **kwargs: object) -> Tensor:
        y: Tensor = self.top(self.site(x))
        return y


class Stepping(Swallowing):
    """Has a keyword of its own that a call of `refine` has as well."""

    def forward(self, x: Tensor, steps: int = 1, **kwargs: object) -> Tensor:
        return super().forward(x) * steps


def test_options_are_not_swallowed_by_the_backbone() -> None:
    x = X.float()
    net = cbl.ContextLoop(Swallowing(), "site", x)
    with pytest.raises(TypeError, match=r"'steps' would go to the backbone, .* did you mean refine\(..., steps=...\)"):
        net(x, steps=9)
    with pytest.raises(TypeError, match=r"'solvr' would go to the backbone, .* did you mean refine\(..., solver=...\)"):
        net.refine(x, solvr="anderson")
    assert torch.equal(net(x, labels=None), net(x))
    own = cbl.ContextLoop(Stepping(), "site", x)
    assert torch.equal(own(x, steps=2), 2 * own(x))


def test_raise_on() -> None:
    net = build(raise_on="max_steps")
    with pytest.raises(RuntimeError, match="6 of 6 samples ended as 'max_steps' after at most 2 steps") as caught:
        net.refine(X, steps=2)
    assert caught.value.status.tolist() == [cbl.Status.max_steps] * 6  # type: ignore[attr-defined]
    net.refine(X, steps=2, raise_on=())
    net.refine(X, steps=300)
    assert torch.equal(net(X), net.refine(X).output)
    spoilt = X.clone()
    spoilt[2] = torch.nan
    with pytest.raises(RuntimeError, match="1 of 6 samples ended as 'non_finite' .*samples 2.*look for NaN"):
        net.refine(spoilt, steps=300, raise_on=("diverged", cbl.Status.non_finite))
    net.config.settings.changed(raise_on=())


def test_batch_norm_per_step_has_no_fixed_point() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    net = cbl.ContextLoop(backbone, "0", x)
    for options in ({"solver": "anderson"}, {"gradient": "implicit"}, {"gradient": "phantom"}):
        with pytest.raises(ValueError, match="makes each step another map.*build the loop with step_norm='frozen'"):
            net.refine(x, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="batch norm with step_norm='per_step' makes each step another map"):
        cbl.ContextLoop(backbone, "0", x, solver="broyden", step_norm="per_step")
    assert cbl.ContextLoop(backbone, "0", x, solver="broyden").config.step_norm == "frozen"
    shared = cbl.ContextLoop(backbone, "0", x, step_norm="shared")
    with pytest.raises(ValueError, match="another map in training"):
        shared.train().refine(x, solver="broyden")
    shared.eval().refine(x, solver="broyden")
    net.refine(x, halting=Tolerance(1e-3), gradient="truncated")


def test_the_batch_norms_say_whether_there_is_one_map() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)).eval()
    x = torch.randn(6, 4)
    net = cbl.ContextLoop(backbone, "0", x, step_norm="shared", gradient="implicit").freeze_backbone()
    net.train()(x)  # in which no batch norm trains
    net.eval()
    backbone[2].train()
    with pytest.raises(ValueError, match="step_norm='shared' makes each step another map in training"):
        net(x)


def test_batch_norm_without_statistics_has_no_fixed_point() -> None:
    backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    x = torch.randn(6, 4)
    message = r"but batch norm '1' has no running statistics .* mixes the samples at every step.*group or layer norm"
    with pytest.raises(ValueError, match=message):
        cbl.ContextLoop(backbone, "0", x, gradient="implicit")
    net = cbl.ContextLoop(backbone, "0", x, step_norm="frozen").eval()
    with pytest.raises(ValueError, match=message):
        net.refine(x, solver="anderson")
    net.refine(x, gradient="truncated")


@pytest.mark.parametrize(
    "option",
    [
        Picard(0.25),
        Anderson(3, 0.1, 1e-6),
        Broyden(4),
        Newton(99),
        Implicit(adjoint=Broyden(7), tolerance=1e-3),
        Implicit(order=2),
        Truncated(3),
        Phantom(2, 0.1),
        Never(),
        (Tolerance(1e-3) | Agreement(3)) & cbl.Confidence(0.5),
    ],
    ids=repr,
)
def test_options_survive_as_plain_data(option: object) -> None:
    described = describe_option(option)
    assert isinstance(described, dict)
    assert restore_option(described) == option
    described["surprise"] = 1
    with pytest.raises(ValueError, match="has the fields"):
        restore_option(described)


@pytest.mark.parametrize("rule", [Tolerance, cbl.Confidence, Picard, lambda value: Truncated(np.int64(8 * value))])
def test_numbers_of_numpy_are_plain_data_too(rule: Callable[[float], object]) -> None:
    option = rule(np.float32(0.25))  # type: ignore[arg-type]
    described = describe_option(option)
    assert restore_option(json.loads(json.dumps(described))) == option == rule(0.25)


def test_a_save_keeps_how_the_loop_is_run(tmp_path: Path) -> None:
    net = build(
        solver=Anderson(memory=3), gradient=Implicit(tolerance=1e-4), halting=Tolerance(1e-5), raise_on="diverged"
    )
    net.eval().save(str(tmp_path))
    again = cbl.load(str(tmp_path), copy.deepcopy(net.backbone))
    assert again.config.settings == net.config.settings
    assert torch.equal(again(X), net(X))
    other = cbl.load(str(tmp_path), copy.deepcopy(net.backbone), solver="broyden", gradient="bptt", halting=Never())
    assert other.config.settings.solver == Broyden()
    assert (other.refine(X).steps == 30).all()


class Timid(Solver):
    name = "timid"

    def step(self, memory: object, s: Tensor, value: Tensor, g: object) -> tuple[Tensor, object]:
        return (s + value) / 2, memory


class Twice(Halting):
    def done(self, progress: Progress, memory: object) -> tuple[Tensor, object]:
        return torch.full_like(progress.residual, progress.step >= 2, dtype=torch.bool), memory


def test_own_solvers_and_rules_must_be_passed_again(tmp_path: Path) -> None:
    net = build(solver=Timid(), halting=Twice()).eval()
    assert (net.refine(X).steps == 2).all()
    assert (net.refine(X).status == cbl.Status.halted).all()
    net.save(str(tmp_path))
    with pytest.raises(ValueError, match="a solver of the caller's own, .* load\\(..., solver=...\\)"):
        cbl.load(str(tmp_path), net.backbone)
    again = cbl.load(str(tmp_path), net.backbone, solver=Timid(), halting=Twice())
    assert torch.equal(again(X), net(X))


def test_export_wants_a_fixed_number_of_steps() -> None:
    net = build(halting=Tolerance(1e-5)).eval()
    with pytest.raises(ValueError, match="takes as many steps as the data wants, and an export has a fixed number"):
        net.export()
    build(gradient="implicit").eval().export()


def test_weights_on_outputs_without_a_gradient_are_refused() -> None:
    net = build(gradient="implicit", halting=Tolerance(1e-8))
    r, target = net.refine(X), torch.zeros(6, dtype=torch.long)
    with pytest.raises(ValueError, match="lambda_1 = 0.0323 to y_1, which has no gradient.*weights='last'"):
        cbl.refinement_loss(r, target)
    cbl.refinement_loss(r, target, weights="last").backward()
    assert all(p.grad is not None for p in net.parameters())
    with torch.no_grad():
        cbl.refinement_loss(net.refine(X), target)


@pytest.mark.parametrize(
    ("gradient", "differentiated"),
    [
        ("bptt", [0, 1, 2, 3, 4]),
        ("checkpointed", [0, 1, 2, 3, 4]),
        (Truncated(2), [0, 3, 4]),
        ("phantom", [0, 4]),
        ("implicit", [0, 4]),
    ],
)
def test_which_outputs_a_rule_differentiates(gradient: str | Gradient, differentiated: list[int]) -> None:
    r, target = build(gradient=gradient).refine(X, steps=4), torch.zeros(6, dtype=torch.long)
    assert [step for step, y in enumerate(r.outputs) if y.requires_grad] == differentiated
    weights = [float(step in differentiated) / len(differentiated) for step in range(5)]
    cbl.refinement_loss(r, target, weights=weights).backward()
    if len(differentiated) < 5:
        message = (
            "to y_1, which has no gradient: gradient='implicit' and 'phantom' differentiate y_T (and y_0) alone, "
            "'truncated' its last k outputs (and y_0)."
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            cbl.refinement_loss(r, target)


def test_early_finish_keeps_the_weights_of_the_loss() -> None:
    net = build(halting=Tolerance(1e-12)).train()
    target = torch.zeros(6, dtype=torch.long)
    early, full = net.refine(X, steps=60), net.refine(X, steps=60, halting=Never())
    assert (early.steps < 60).all()
    assert len(early.outputs) == 61
    loss = [cbl.refinement_loss(r, target, weights="linear") for r in (early, full)]
    torch.testing.assert_close(*loss, rtol=0, atol=1e-10)
    gradients = [torch.autograd.grad(one, list(net.parameters())) for one in loss]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
