"""Jacobians of a map sample by sample, in whatever mode and thread."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import Tensor

from problems import random
from torchcbl.fixed_point import fixed_point
from torchcbl.solvers.jacobian import jacobian, product


class NoForwardMode(torch.autograd.Function):
    @staticmethod
    def forward(ctx, s: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(s)
        return s.sin()

    @staticmethod
    def backward(ctx, v: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        return v * ctx.saved_tensors[0].cos()


@pytest.mark.parametrize(
    ("mode", "sine"),
    [
        (torch.no_grad, torch.sin),
        (torch.enable_grad, torch.sin),
        (torch.inference_mode, torch.sin),
        (torch.no_grad, NoForwardMode.apply),
        (torch.enable_grad, NoForwardMode.apply),
    ],
)
def test_jacobian(mode: type, sine: object) -> None:
    with mode():
        weight, s = random(3, 4, 4), random(3, 4, seed=1)
        found = jacobian(lambda s: sine((weight @ s[:, :, None])[:, :, 0]), s)  # type: ignore[operator]
        torch.testing.assert_close(found, (weight @ s[:, :, None]).cos() * weight)
        constant = jacobian(lambda s: torch.ones_like(s), s)
        assert torch.equal(constant, torch.zeros(3, 4, 4, dtype=torch.float64))


def test_jacobian_has_no_reverse_mode_in_inference_mode() -> None:
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match="has no forward-mode derivative, and torch.inference"),
    ):
        fixed_point(NoForwardMode.apply, random(2, 3), solver="newton", steps=3)


def test_product() -> None:
    weight, s, v = random(4, 4), random(3, 4, seed=1), random(3, 4, seed=2)
    expected = (s @ weight.T).cos() * (v @ weight.T)
    torch.testing.assert_close(product(lambda s: (s @ weight.T).sin(), s, v), expected)


def test_threads_do_not_spoil_each_other() -> None:
    weights = [random(6, 6, seed=seed) for seed in range(4)]
    wrong: list[int] = []

    def work(index: int) -> None:
        weight, s = weights[index], random(3, 6, seed=9)
        expected = (s @ weight.T).cos()[:, :, None] * weight

        def slow(s: Tensor) -> Tensor:
            time.sleep(0.001 * index)
            return (s @ weight.T).sin()

        for _ in range(10):
            if not torch.allclose(product(slow, s, torch.ones_like(s)), expected.sum(2), rtol=1e-12):
                wrong.append(index)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong
