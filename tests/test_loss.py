"""Eq. 9 and the weights lambda."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from torchcbl import Refinement, Status, refinement_loss
from torchcbl.loss import lambda_weights


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("last", [0, 0, 0, 1]),
        ("uniform", [1 / 4] * 4),
        ("linear", [1 / 10, 2 / 10, 3 / 10, 4 / 10]),
        ("geometric", [1 / 15, 2 / 15, 4 / 15, 8 / 15]),
    ],
)
def test_named_weights(name: str, expected: list[float]) -> None:
    assert lambda_weights(name, 3) == pytest.approx(expected)
    assert lambda_weights(name, 0) == [1.0]
    assert math.fsum(lambda_weights(name, 7)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "weights", ["last", "uniform", "linear", "geometric", [0.5, 0.0, 0.5], torch.tensor([0.2, 0.3, 0.5])]
)
def test_loss_is_the_weighted_sum(weights: object) -> None:
    outputs = [torch.randn(5, 3, dtype=torch.float64) for _ in range(3)]
    target = torch.randint(3, (5,))
    lambdas = lambda_weights(weights, 2)  # type: ignore[arg-type]
    expected = sum(w * F.cross_entropy(y, target) for w, y in zip(lambdas, outputs, strict=True))
    torch.testing.assert_close(refinement_loss(Refinement(outputs), target, weights), expected)  # type: ignore[arg-type]


def test_any_criterion() -> None:
    outputs = [torch.randn(5, 3) for _ in range(3)]
    target = torch.randn(5, 3)
    expected = sum(F.mse_loss(y, target) / 3 for y in outputs)
    torch.testing.assert_close(refinement_loss(Refinement(outputs), target, criterion=F.mse_loss), expected)


def test_one_class_alone_needs_a_criterion() -> None:
    y, target = torch.randn(5, 1), torch.ones(5, 1)
    with pytest.raises(ValueError, match="cross entropy is 0 whatever it says: pass criterion="):
        refinement_loss(Refinement([y, y]), target)
    criterion = F.binary_cross_entropy_with_logits
    torch.testing.assert_close(refinement_loss(Refinement([y, y]), target, criterion=criterion), criterion(y, target))


@pytest.mark.parametrize("positions", [3, 4, 5])
def test_classes_of_positions_are_on_the_last_axis(positions: int) -> None:
    y = torch.randn(2, positions, 4)
    target = torch.randint(4, (2, positions))
    expected = F.cross_entropy(y.flatten(0, 1), target.flatten())
    torch.testing.assert_close(refinement_loss(Refinement([y]), target), expected)
    torch.testing.assert_close(refinement_loss(Refinement([y]), F.one_hot(target, 4).float()), expected)


def test_classes_of_pixels_are_on_axis_one() -> None:
    y, target = torch.randn(2, 4, 4, 4), torch.randint(4, (2, 4, 4))
    torch.testing.assert_close(refinement_loss(Refinement([y]), target), F.cross_entropy(y, target))


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("first", "weights must be 'last', 'uniform', 'linear', 'geometric' or 3 numbers, got 'first'"),
        ([0.5, 0.5], r"weights has 2 numbers, expected 3: one for each output y_0..y_2"),
        ([0.5, 0.4, 0.0], r"weights must sum to 1, got .* which sum to 0.9"),
        ([float("nan"), 0.5, 0.5], "weights must sum to 1"),
    ],
)
def test_bad_weights(weights: object, message: str) -> None:
    outputs = [torch.randn(5, 3) for _ in range(3)]
    with pytest.raises(ValueError, match=message):
        refinement_loss(Refinement(outputs), torch.zeros(5, dtype=torch.long), weights)  # type: ignore[arg-type]


def test_refinement_without_steps() -> None:
    r = Refinement([torch.randn(4, 2)])
    assert r.residuals.shape == (0, 4)
    assert r.steps.tolist() == [0] * 4
    assert r.status.tolist() == [Status.max_steps] * 4


def test_status_per_sample() -> None:
    still = torch.ones(4)
    y0 = torch.stack([still, still, still, still])
    y1 = torch.stack([still, 1.01 * still, 1.5 * still, still])
    y2 = torch.stack([still, -300 * still, 2.5 * still, still / 0])
    r = Refinement([y0, y1, y2])
    assert [Status(s).name for s in r.status.tolist()] == ["converged", "diverged", "max_steps", "non_finite"]
    assert "1 converged, 1 max_steps, 1 diverged, 1 non_finite" in repr(r)
    torch.testing.assert_close(r.residuals[0], torch.tensor([0.0, 0.01 / 1.01, 0.5 / 1.5, 0.0]))
