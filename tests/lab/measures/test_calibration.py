"""Calibration, early exit and packed answers, against closed forms and the library's own loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.halting import Agreement, Confidence
from torchcbl.lab.measures.calibration import Reliability, StepScores, brier, correct, nll, reliability, score
from torchcbl.lab.measures.clean import Changes, changed, pack
from torchcbl.lab.measures.exits import Exit, exits, stopping_steps


def logits_of(confidence: list[float]) -> Tensor:
    p = torch.tensor(confidence, dtype=torch.float64)
    return torch.stack([p, 1 - p], 1).log()


def test_ece_by_hand() -> None:
    # Two bins of five hold anything: 0.55, 0.59 (1 of 2 right) and 0.9 (right): |0.5 - 0.57| 2/3 + |1 - 0.9| 1/3.
    found = reliability(logits_of([0.55, 0.59, 0.9]), torch.tensor([0, 1, 0]), bins=5)
    assert found.count == (0, 0, 2, 0, 1)
    assert found.confidence[2] == pytest.approx(0.57)
    assert math.isnan(found.confidence[0])
    assert found.ece == pytest.approx(0.07 * 2 / 3 + 0.1 / 3)


def test_bins_are_closed_above() -> None:
    edges = reliability(logits_of([0.6, 0.6 + 1e-9, 1.0]), torch.zeros(3, dtype=torch.long), bins=5)
    assert edges.count == (0, 0, 1, 1, 1)


def test_a_calibrated_network_has_no_error() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert reliability(logits_of([0.75] * 4), labels).ece == pytest.approx(0.0)
    assert reliability(logits_of([1.0] * 4), labels).ece == pytest.approx(0.25)


def test_an_answer_that_is_not_finite_shows() -> None:
    found = score(torch.tensor([[[math.nan, 0.0], [1.0, 0.0]]]), torch.tensor([1, 0]))
    assert math.isnan(found.ece[0])
    assert math.isnan(found.loss[0])


def test_scores_against_torch() -> None:
    logits, labels = torch.randn(3, 50, 7), torch.randint(0, 7, (50,))
    found = score(logits, labels)
    for step in range(3):
        assert found.loss[step] == pytest.approx(float(nn.functional.cross_entropy(logits[step], labels)), rel=1e-5)
        assert found.accuracy[step] == pytest.approx(float((logits[step].argmax(1) == labels).float().mean()))
        one_hot = nn.functional.one_hot(labels, 7)
        expected = (logits[step].softmax(1) - one_hot).square().sum(1).mean()
        assert float(brier(logits, labels)[step]) == pytest.approx(float(expected), rel=1e-5)
    assert nll(logits, labels).shape == correct(logits, labels).shape == (3, 50)


def test_results_check_themselves() -> None:
    with pytest.raises(ValueError, match="scores need accuracy, loss and ece of each step, got \\(1, 2, 1\\)"):
        StepScores((0.5,), (1.0, 2.0), (0.1,))
    with pytest.raises(ValueError, match="accuracy must be fractions"):
        StepScores((1.5,), (1.0,), (0.1,))
    with pytest.raises(ValueError, match="reliability needs count"):
        Reliability((1,), (), ())
    with pytest.raises(ValueError, match="an exit's accuracy must be a fraction"):
        Exit("confidence", 0.9, 1, 2.0, 1.0, 1.0)


@pytest.fixture
def loop() -> cbl.ContextLoop:
    backbone = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))
    net = cbl.ContextLoop(backbone, "0", torch.randn(2, 5), "additive", steps=5)
    nn.init.normal_(net.adapters["0"].up.weight, std=1.5)  # type: ignore[union-attr, arg-type]
    with torch.no_grad():
        backbone[2].weight *= 5
    return net.eval()


@pytest.mark.parametrize("rule", [Confidence(0.7), Confidence(0.95), Agreement(1), Agreement(2)])
def test_early_exit_is_the_library_s(loop: cbl.ContextLoop, rule: cbl.Confidence | cbl.Agreement) -> None:
    x = 3 * torch.randn(200, 5)
    with torch.no_grad():
        outputs = torch.stack(tuple(loop.refine(x).outputs))
        halted = loop.refine(x, halting=rule)
    stops = stopping_steps(outputs, rule)
    assert stops.min() >= 1
    assert stops.unique().numel() > 1, "a test in which all stop at once proves nothing"
    expected = outputs.gather(0, stops[None, :, None].expand(1, -1, outputs.shape[2]))[0]
    torch.testing.assert_close(halted.output, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(halted.evaluations.long(), stops)


def test_exits_cost_what_the_steps_cost() -> None:
    logits = torch.tensor([[[9.0, 0.0], [0.1, 0.0]], [[9.0, 0.0], [0.0, 9.0]], [[9.0, 0.0], [9.0, 0.0]]])
    labels = torch.tensor([0, 1])
    found = {(one.rule, one.level, one.first): one for one in exits(logits, labels, 10.0, 3.0)}
    early, late = found["confidence", 0.9, 0], found["confidence", 0.9, 1]
    assert (early.accuracy, early.steps, early.flops) == (1.0, 0.5, 11.5)
    assert (late.accuracy, late.steps, late.flops) == (1.0, 1.0, 13.0)
    assert found["agreement", 1.0, 1].steps == 1.5
    assert exits(logits[:1], labels, 10.0, 0.0) == ()


def test_packed_answers_come_back() -> None:
    right = torch.rand(3, 21) < 0.5
    rows = [np.frombuffer(__import__("base64").b64decode(row), np.uint8) for row in pack(right)]
    assert (np.unpackbits(np.stack(rows), axis=1, count=21).astype(bool) == right.numpy()).all()


def test_changes_are_those_between_the_first_and_the_last_step() -> None:
    first = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    last = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    found = changed(torch.stack([first, 0 * first, last]), torch.tensor([1, 0, 1, 0]))
    assert [(one.index, one.label, one.first, one.last, one.better) for one in found] == [
        (0, 1, 0, 1, True),
        (2, 1, 1, 2, False),
    ]
    assert len(found) == 2
    with pytest.raises(ValueError, match=r"should be of one length, got \[1, 1, 1, 2\]"):
        Changes((0,), (1,), (0,), (1, 2))


def test_what_is_no_number_is_no_answer() -> None:
    logits = torch.tensor([[[float("nan")] * 3, [2.0, float("nan"), 1.0], [float("inf"), 0.0, 0.0]]])
    assert correct(logits, torch.tensor([0, 0, 0])).tolist() == [[False, False, True]]
