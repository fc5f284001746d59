"""Norms of layers against the matrices that the layers are."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from torchcbl.adapters.bounded import BoundedLinear
from torchcbl.theory import norms
from torchcbl.theory.layers import _affine_size, through, through_batch_norm
from torchcbl.theory.norms import conv_norm, linear_norm
from torchcbl.theory.reach import NoBoundError, Reach, known


def matrix_of(layer: nn.Module, shape: Sequence[int]) -> Tensor:
    """The matrix of a linear layer on one sample: its Jacobian at random, eval mode."""
    x = torch.randn(1, *shape, dtype=torch.float64)
    return torch.autograd.functional.jacobian(layer.double().eval(), x).reshape(-1, x.numel())


def test_linear() -> None:
    layer = nn.Linear(5, 3).double()
    exact = torch.linalg.matrix_norm(layer.weight, ord=2)
    assert linear_norm(layer) == pytest.approx(float(exact), rel=1e-12)
    layer.weight.data.mul_(2.0)  # past the version counter
    assert linear_norm(layer) == pytest.approx(2 * float(exact), rel=1e-12)


CONVOLUTIONS = {
    "plain": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 7)),
    "stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 6)),
    "dilated": (nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 7, 7)),
    "groups": (nn.Conv2d(4, 6, 3, groups=2, padding=1), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4, padding=1), (4, 5, 5)),
    "circular": (nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular"), (3, 6, 6)),
    "one dimension": (nn.Conv1d(3, 5, 5, padding=2), (3, 11)),
    "three dimensions": (nn.Conv3d(2, 2, 2), (2, 4, 4, 4)),
    "pointwise": (nn.Conv2d(5, 3, 1), (5, 4, 4)),
    "transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1), (3, 4, 4)),
}
EXACT = ("circular", "pointwise")


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("most_work", [1e12, 0.0], ids=["by frequency", "unfolded"])
def test_convolutions_are_bounded_from_above(kind: str, most_work: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "_MOST_WORK", most_work)
    norms._known.clear()
    layer, shape = CONVOLUTIONS[kind]
    exact = float(torch.linalg.matrix_norm(matrix_of(layer, shape), ord=2))
    after = layer(torch.zeros(1, *shape, dtype=torch.float64)).shape
    bound = conv_norm(layer, after[2:] if isinstance(layer, nn.ConvTranspose2d) else shape[1:])
    assert bound >= exact * (1 - 1e-10)
    assert bound <= exact * (1.6 if most_work else 3.0)
    if kind in EXACT and most_work:
        assert bound == pytest.approx(exact, rel=1e-10)


def test_repeating_padding_has_no_bound() -> None:
    with pytest.raises(NoBoundError, match="padding_mode='reflect' repeats entries"):
        conv_norm(nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), (5, 5))


LAYERS = {
    "max pool": (nn.MaxPool2d(2), (2, 6, 6)),
    "overlapping max pool": (nn.MaxPool2d(3, stride=1), (2, 6, 6)),
    "avg pool": (nn.AvgPool2d(2), (2, 6, 6)),
    "overlapping avg pool": (nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=False), (2, 7, 7)),
    "global pool": (nn.AdaptiveAvgPool2d(1), (2, 4, 4)),
    "uneven pool": (nn.AdaptiveAvgPool2d(3), (2, 5, 7)),
    "layer norm": (nn.LayerNorm(6), (6,)),
    "group norm": (nn.GroupNorm(2, 4), (4, 3)),
    **{
        type(f).__name__: (f, (6,))
        for f in (
            nn.ReLU(), nn.ReLU6(), nn.Tanh(), nn.Sigmoid(), nn.Softmax(-1), nn.GELU(), nn.SiLU(), nn.Softplus(),
            nn.Hardsigmoid(), nn.Hardswish(), nn.Softsign(), nn.LeakyReLU(2.0), nn.ELU(1.5), nn.Hardtanh(-2, 3),
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", LAYERS)
def test_no_pair_of_inputs_beats_a_layer_s_bound(kind: str) -> None:
    """Jacobians at many points and scales: all below, and the largest near the bound where that is tight."""
    layer, shape = LAYERS[kind]
    layer = layer.double().eval()
    after = tuple(layer(torch.zeros(1, *shape, dtype=torch.float64)).shape)
    one = Reach(torch.ones(1, dtype=torch.float64), torch.full((1,), 8.0, dtype=torch.float64))
    bound = through(layer, one, (1, *shape), after)
    largest = 0.0
    for scale in torch.logspace(-3, 0.9, 60, dtype=torch.float64):
        x = (scale * torch.randn(1, *shape, dtype=torch.float64)).clamp(-8, 8)
        jacobian = torch.autograd.functional.jacobian(layer, x).reshape(-1, x.numel())
        largest = max(largest, float(torch.linalg.matrix_norm(jacobian, ord=2)))
        if bound.size is not None:
            assert float(layer(x).abs().max()) <= float(bound.size) + 1e-12
    assert largest <= float(bound.factor) * (1 + 1e-9)
    if not kind.startswith(("overlapping", "uneven")) and not kind.endswith("norm"):
        assert largest >= 0.8 * float(bound.factor), "the bound could be tighter than it is"


def test_batch_norm_and_dropout() -> None:
    norm = nn.BatchNorm1d(4).double().eval()
    norm.running_var.copy_(torch.tensor([0.1, 1.0, 4.0, 2.0]))
    norm.weight.data.copy_(torch.tensor([-1.0, 2.0, 3.0, 1.0]))
    one = Reach(torch.ones(1, dtype=torch.float64))
    exact = torch.linalg.matrix_norm(matrix_of(norm, (4,)), ord=2)
    assert float(through_batch_norm(norm, one, norm.running_var).factor) == pytest.approx(float(exact), rel=1e-10)
    with pytest.raises(NoBoundError, match="mixes the samples of a batch"):
        through_batch_norm(nn.BatchNorm1d(4, track_running_stats=False), one, None)
    dropout = nn.Dropout(0.75)
    assert float(through(dropout, one, (1, 4), (1, 4)).factor) == 4.0
    assert float(through(dropout.eval(), one, (1, 4), (1, 4)).factor) == 1.0


def test_what_has_no_bound_says_so() -> None:
    one = Reach(torch.ones(1, dtype=torch.float64))
    with pytest.raises(NoBoundError, match="MultiheadAttention has no Lipschitz constant"):
        through(nn.MultiheadAttention(4, 1), one, (1, 3, 4), (1, 3, 4))
    with pytest.raises(NoBoundError, match="no bound is known for GRU"):
        through(nn.GRU(4, 4), one, (1, 3, 4), (1, 3, 4))

    class Louder(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * super().forward(x)

    with pytest.raises(NoBoundError, match="no bound is known for Louder"):
        through(Louder(4, 4), one, (1, 4), (1, 4))


def test_sizes_are_bounded_on_the_cpu_wherever_the_weights_are() -> None:
    with FakeTensorMode():  # it knows devices that this machine has not
        weight, bias = torch.empty(4, 3, device="cuda"), torch.empty(4, device="cuda")
        one = torch.tensor([1.0], dtype=torch.float64)
        size = _affine_size(weight, bias, Reach(one, one))
    assert size is not None
    assert size.device.type == "cpu"


def test_what_is_known_is_on_the_cpu_whatever_the_default() -> None:
    with torch.device("meta"):
        number, held = known(2.0), Reach.constant(torch.ones(3, 2, device="cpu"), per_sample=True)
        assert bool(held.plus(Reach(number, number)).factor == 2)
    assert number.device.type == "cpu"


def test_bounded_linear() -> None:
    plain = nn.Linear(6, 4).double()
    held = BoundedLinear(plain, 0.3)
    assert held.weight is plain.weight
    assert dict(held.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    norm = float(torch.linalg.matrix_norm(held.bounded_weight(), ord=2))
    assert 0.2999 < norm <= 0.3
    assert linear_norm(held) == pytest.approx(norm, rel=1e-12)
    assert torch.equal(BoundedLinear(plain, 100.0).bounded_weight(), plain.weight)
    assert torch.equal(BoundedLinear(plain, float("inf")).bounded_weight(), plain.weight)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: x @ held_weight(held, w).mT, (x, plain.weight))
    zero = BoundedLinear(nn.Linear(3, 2), 0.5)
    nn.init.zeros_(zero.weight)
    zero(torch.randn(4, 3)).sum().backward()
    assert zero.weight.grad is not None
    assert zero.weight.grad.isfinite().all()


def held_weight(held: BoundedLinear, weight: Tensor) -> Tensor:
    return torch.func.functional_call(_Weight(held), {"held.weight": weight}, ())


class _Weight(nn.Module):
    def __init__(self, held: BoundedLinear) -> None:
        super().__init__()
        self.held = held

    def forward(self) -> Tensor:
        return self.held.bounded_weight()
