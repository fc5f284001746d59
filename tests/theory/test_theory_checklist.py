"""Contraction and penalty over adapters, schedules and backbones, against the Jacobian that autograd makes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import torchcbl as cbl
from backbones import CASES, Case, Transformer
from subject import awaken
from torchcbl.adapters import ADAPTERS
from torchcbl.backbone.calls import Call
from torchcbl.schedules import SCHEDULES
from torchcbl.theory import Contraction, jacobian_penalty
from torchcbl.theory.space import Space, opened

KINDS = [(name, cut) for name, case in CASES.items() for cut in dict.fromkeys((case.cut, "replayed"))]


def build(case: Case, cut: str, **options: object) -> cbl.ContextLoop:
    torch.manual_seed(3)
    settings = {"steps": 2, "context": cbl.Context(dim=3), "allow_dead": True, "step_norm": "frozen", **options}
    net = cbl.ContextLoop(case.build().double(), case.sites, case.example().double(), cut=cut, **settings)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in awaken(net).adapter_parameters():
            parameter.mul_(0.5)
    return net


# the schedule goes round, so that every two choices meet: each takes long, and tests/test_checklist.py runs all three
@pytest.mark.parametrize(
    ("kind", "adapter", "schedule"),
    [
        pytest.param(kind, adapter, sorted(SCHEDULES)[(i + j) % len(SCHEDULES)], id="-".join((*kind, adapter)))
        for i, kind in enumerate(KINDS)
        for j, adapter in enumerate(sorted(ADAPTERS))
    ],
)
def test_family(kind: tuple[str, str], adapter: str, schedule: str) -> None:
    case, cut = CASES[kind[0]], kind[1]
    if adapter == "token" and case.build is not Transformer:
        pytest.skip("no attention layer to join")
    check(build(case, cut, adapter=adapter, schedule=schedule), case.example(2).double())


@pytest.mark.parametrize(
    ("name", "cut", "schedule"), [(*kind, sorted(SCHEDULES)[i % len(SCHEDULES)]) for i, kind in enumerate(KINDS)]
)
def test_damped_family(name: str, cut: str, schedule: str) -> None:
    case = CASES[name]
    check(build(case, cut, schedule=schedule, alpha=0.3), case.example(2).double())


def check(net: cbl.ContextLoop, x: Tensor) -> None:
    report = cbl.contraction(net, x, steps=4, exact_up_to=24, iterations=4)
    with opened(net, Call((x,))) as space, torch.no_grad():
        _check_step(net, x, space)
        if space.size <= 24:
            _check_numbers(space, report)
    found = report.status == cbl.Status.converged
    assert torch.equal(found, ~report.spectral_norm.isnan())
    assert (report.certified is None) == bool(report.reason)
    if report.certified is not None:
        assert (report.spectral_norm <= report.certified + 1e-9)[found].all()
    if report.exact:
        assert (report.spectral_radius <= report.spectral_norm + 1e-6)[found].all()
    penalty = jacobian_penalty(net, x)
    assert penalty.isfinite()
    penalty.backward()


def _check_step(net: cbl.ContextLoop, x: Tensor, space: Space) -> None:
    """A step from s_0 on the space's map is a step of the loop."""
    once, alpha = space.step(space.start), net.config.alpha
    if space.name == "y":
        torch.testing.assert_close(once, net.eval().refine(x, steps=1).output.flatten(1), rtol=0, atol=1e-10)
    elif space.carries_hidden and not space.departure:
        undamped = space.undamped(space.start)
        torch.testing.assert_close(once, alpha * space.start + (1 - alpha) * undamped, rtol=0, atol=1e-10)


def _check_numbers(space: Space, report: Contraction) -> None:
    """Norm and radius are those of the Jacobian by autograd, sample by sample, where there is a fixed point."""
    for i in range(2):
        if report.spectral_norm[i].isnan():
            continue

        def one(s: Tensor, i: int = i) -> Tensor:
            whole = report.fixed_point.clone()
            whole[i] = s
            return space.undamped(whole)[i]

        with torch.enable_grad():
            matrix = torch.autograd.functional.jacobian(one, report.fixed_point[i])
        assert float(torch.linalg.matrix_norm(matrix, ord=2)) == pytest.approx(float(report.spectral_norm[i]), abs=1e-8)
        assert float(torch.linalg.eigvals(matrix).abs().max()) == pytest.approx(
            float(report.spectral_radius[i]), abs=1e-8
        )
