"""The behaviours themselves: each holds on a small network, and notices the fault that it is there for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from backbones import Positions
from behaviours import BEHAVIOURS
from subject import Subject
from torchcbl.adapters import Film
from torchcbl.audit import Audit
from torchcbl.backbone.calls import Call
from torchcbl.settings import Settings


def _batch(size: int) -> dict[str, Tensor]:
    return {"x": torch.randn(size, 7, 5, generator=torch.Generator().manual_seed(1))}


SMALL = Subject(Positions, ("embed", "norm"), _batch, context={"detach": True})
FILM, REFINE, SOLVE, AUDIT = Film.forward, cbl.ContextLoop.refine, cbl.ContextLoop.solve, cbl.ContextLoop.audit
LOAD = cbl.load


def _all_dead(net: cbl.ContextLoop, *example: object) -> Audit:
    audit = AUDIT(net, *example)  # type: ignore[arg-type]
    dead = tuple(dataclasses.replace(found, gradient=0.0, change=0.0) for found in audit.adapters)
    return dataclasses.replace(audit, adapters=dead)


def _run_again(net: cbl.ContextLoop, call: Call, settings: Settings, *rest: object, **options: object) -> object:
    for _ in range(settings.steps):
        call.run(net.backbone)
    return SOLVE(net, call, settings, *rest, **options)  # type: ignore[arg-type]


def _load_changed(*args: object) -> cbl.ContextLoop:
    net = LOAD(*args)  # type: ignore[arg-type]
    next(net.adapters.parameters()).data.add_(1.0)
    return net


def _cut_off_below(film: Film, h: Tensor, z: Tensor) -> Tensor:
    return FILM(film, h.detach() if film.site.name == "embed" else h, z)


LOOP = cbl.ContextLoop
FAULTS: dict[str, tuple[object, str, Callable[..., object], str]] = {
    "identity_start": (Film, "forward", lambda self, h, z: FILM(self, h, z) * 1.01, "y_1 differs from the backbone"),
    "steps_zero_equality": (LOOP, "refine", lambda self, x, steps: REFINE(self, x, steps=steps or 1), "0 steps gave 2"),
    "output_type": (LOOP, "forward", lambda self, x: self.backbone(x), "does not hold y_T"),
    "gradients_reach": (Film, "forward", _cut_off_below, "no gradient reaches .*'embed"),
    "audit_truthful": (LOOP, "audit", _all_dead, "audit says live=False, moved=True"),
    "batch_independence": (Film, "forward", lambda self, h, z: FILM(self, h, z) + h.mean(0), "sample 0 alone differs"),
    "save_load_round_trip": (cbl, "load", _load_changed, "the loaded loop gives other numbers"),
    "deepcopy_and_pickle": (LOOP, "__deepcopy__", lambda self, memo: self, "the deepcopy shares weights"),
    "prefix_flops": (LOOP, "solve", _run_again, "what is below 'embed' is read 2 times in 0 and 8 in 3 steps"),
    "train_eval_mode": (LOOP, "train", lambda self, mode=True: self, "does not reach every module"),
    "repr_tells": (LOOP, "__repr__", nn.Module.__repr__, "repr lacks"),
}


def test_every_behaviour_has_a_fault_to_notice() -> None:
    assert list(FAULTS) == list(BEHAVIOURS)


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("schedule", ["literal", "repropagate", "synchronous"])
def test_behaviours_hold(behaviour: str, schedule: str) -> None:
    BEHAVIOURS[behaviour](dataclasses.replace(SMALL, schedule=schedule, context={}))


@pytest.mark.parametrize("behaviour", FAULTS)
def test_behaviours_notice(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, name, faulty, message = FAULTS[behaviour]
    monkeypatch.setattr(place, name, faulty, raising=False)
    with pytest.raises(AssertionError, match=message):
        BEHAVIOURS[behaviour](SMALL)
