"""Attacks: exact optima on linear models, the ball and the box, hidden gradients, and another library's attacks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.lab.measures.attack import checks
from torchcbl.lab.measures.attack.apgd import apgd
from torchcbl.lab.measures.attack.gradient import fgsm, pgd
from torchcbl.lab.measures.attack.square import square
from torchcbl.lab.measures.attack.suite import ENSEMBLE, FGSM, PGD, AttackSuite, Budget
from torchcbl.lab.measures.attack.threat import Attacked, dlr_on_step, margin, on_step, on_sum, project
from torchcbl.lab.measures.calibration import nll

SHAPE, K = (3, 8, 8), 5
SMALL = Budget(eps=(2.0, 8.0), apgd_steps=15, queries=60, large_steps=10)


def linear(classes: int = 2, seed: int = 0) -> tuple[nn.Linear, Attacked]:
    torch.manual_seed(seed)
    layer = nn.Linear(192, classes).double()
    return layer, Attacked(lambda x, y: layer(x.flatten(1))[None])


def pixels(count: int = 20, seed: int = 1) -> Tensor:
    # Some values lie on the border of the box, so that the box matters.
    x = torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (1.6 * x - 0.3).clamp(0, 1)


def worst_margin(layer: nn.Linear, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """The least margin of two classes that the ball and the box allow: each pixel at the end that hurts most."""
    weight = layer.weight[y] - layer.weight[1 - y]
    bias = layer.bias[y] - layer.bias[1 - y]
    low, high = (x - eps).clamp(0, 1).flatten(1), (x + eps).clamp(0, 1).flatten(1)
    return (torch.where(weight > 0, low, high) * weight).sum(1) + bias


def inside(z: Tensor, x: Tensor, eps: float) -> bool:
    return bool((z - x).abs().max() <= eps + 1e-12) and bool(z.min() >= 0) and bool(z.max() <= 1)


def starts(x: Tensor, count: int = 1) -> Tensor:
    return 2 * torch.rand(count, *x.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype) - 1


def uniform(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.3])
class TestLinear:
    """On two linear classes every loss rises with the margin's fall, whose least value is known."""

    def prepared(self, eps: float) -> tuple[Attacked, Tensor, Tensor, Tensor]:
        layer, net = linear()
        x = pixels()
        y = net.logits(x, torch.zeros(len(x), dtype=torch.long))[0].argmax(1)
        return net, x, y, worst_margin(layer, x, y, eps)

    def test_one_step_reaches_the_optimum(self, eps: float) -> None:
        net, x, y, worst = self.prepared(eps)
        z = fgsm(net, x, y, on_step(0), eps)
        assert inside(z, x, eps)
        torch.testing.assert_close(margin(net.logits(z, y)[0], y), worst)

    def test_many_steps_reach_the_optimum(self, eps: float) -> None:
        net, x, y, worst = self.prepared(eps)
        z = pgd(net, x, y, on_step(0), eps, starts(x, 2), steps=10)
        assert inside(z, x, eps)
        torch.testing.assert_close(margin(net.logits(z, y)[0], y), worst)

    def test_apgd_reaches_it_or_stops_where_the_answer_is_wrong(self, eps: float) -> None:
        net, x, y, worst = self.prepared(eps)
        z = apgd(net, x, y, on_step(0), 0, eps, starts(x)[0], steps=20)
        assert inside(z, x, eps)
        found = margin(net.logits(z, y)[0], y)
        holds = worst >= 0
        torch.testing.assert_close(found[holds], worst[holds])
        assert (found[~holds] < 0).all()

    def test_squares_stay_inside_and_come_near(self, eps: float) -> None:
        net, x, y, worst = self.prepared(eps)
        z = square(net, x, y, 0, eps, uniform(len(x), 300, 5), uniform(len(x), 3, 8))
        assert inside(z, x, eps)
        before, found = margin(net.logits(x, y)[0], y), margin(net.logits(z, y)[0], y)
        assert (found >= worst - 1e-9).all()
        assert (found < before).all()


def test_robust_accuracy_of_a_linear_model_is_exact() -> None:
    layer, net = linear(classes=K)
    x = pixels(60)
    y = net.logits(x, torch.zeros(60, dtype=torch.long))[0].argmax(1)
    eps, exact = 6 / 255, []
    for image, label in zip(x.flatten(1), y, strict=True):
        low, high = (image - eps).clamp(0, 1), (image + eps).clamp(0, 1)
        weight, bias = layer.weight[label] - layer.weight, layer.bias[label] - layer.bias
        worst = torch.where(weight > 0, weight * low, weight * high).sum(1) + bias
        worst[label] = torch.inf
        exact.append(bool((worst > 0).all()))
    ce = apgd(net, x, y, on_step(0), 0, eps, starts(x)[0])
    dlr = apgd(net, x, y, dlr_on_step(0), 0, eps, starts(x)[0])
    held = [(margin(net.logits(z, y)[0], y) > 0) for z in (ce, dlr)]
    assert not (~(held[0] & held[1]) & torch.tensor(exact)).any(), "what is certified is not broken"
    assert 0.1 < sum(exact) / 60 < 0.9
    assert int((held[0] & held[1]).sum()) - sum(exact) <= 1


def test_the_ratio_of_logits_by_hand() -> None:
    logits = torch.tensor([[[4.0, 1.0, 3.0, 0.0]]])
    assert float(dlr_on_step(0)(logits, torch.tensor([0]))) == pytest.approx(-(4 - 3) / (4 - 1))
    assert float(dlr_on_step(0)(logits, torch.tensor([2]))) == pytest.approx((4 - 3) / (4 - 1))
    shifted = dlr_on_step(0)(10 * logits + 7, torch.tensor([0]))
    assert float(shifted) == pytest.approx(-1 / 3)


def test_projection() -> None:
    z = project(torch.tensor([2.0, -1.0, 0.52]), torch.tensor([0.5, 0.05, 0.5]), 0.1)
    torch.testing.assert_close(z, torch.tensor([0.6, 0.0, 0.52]))


def a_loop(steps: int = 2) -> cbl.ContextLoop:
    torch.manual_seed(3)
    backbone = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(384, K))
    net = cbl.ContextLoop(backbone, "0", torch.randn(2, *SHAPE), "additive", steps=steps)
    nn.init.normal_(net.adapters["0"].up.weight, std=0.5)  # type: ignore[union-attr, arg-type]
    return net.double().eval().requires_grad_(False)


def attacked(net: cbl.ContextLoop, mean: float = 0.0, std: float = 1.0) -> Attacked:
    return Attacked(lambda x, y: torch.stack(tuple(net.refine(x).outputs)), (mean,) * 3, (std,) * 3)


def test_gradients_are_those_of_the_whole_unrolled_loop() -> None:
    net, x, y = a_loop(), pixels(4), torch.tensor([0, 1, 2, 3])
    for objective in (on_step(0), on_step(2), on_sum, dlr_on_step(2)):
        value, slope, logits = attacked(net).gradient(x, y, objective)
        assert logits.shape == (3, 4, K)
        direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(0))
        h = 1e-6
        ahead, behind = (objective(attacked(net).logits(x + s * h * direction, y), y) for s in (1, -1))
        torch.testing.assert_close(
            (slope * direction).flatten(1).sum(1), (ahead - behind) / (2 * h), rtol=1e-5, atol=1e-7
        )
        torch.testing.assert_close(value, objective(logits, y))
    first, last = (attacked(net).gradient(x, y, on_step(step))[1] for step in (0, 2))
    assert not torch.allclose(first, last, rtol=1e-2), "an attack on y_0 does not see the loop"


def test_normalisation_is_inside() -> None:
    net, x, y = a_loop(), pixels(4), torch.tensor([0, 1, 2, 3])
    inside_ = attacked(net, 0.3, 0.2).logits(x, y)
    torch.testing.assert_close(inside_, attacked(net).logits((x - 0.3) / 0.2, y))


def test_the_sum_is_the_sum() -> None:
    logits, y = torch.randn(3, 4, K), torch.tensor([0, 1, 2, 3])
    torch.testing.assert_close(on_sum(logits, y).double(), nll(logits, y).sum(0))


def suite(net: Attacked, count: int = 40, budget: Budget = SMALL, indices: list[int] | None = None) -> AttackSuite:
    chosen = list(range(count)) if indices is None else indices
    x = pixels(count)[chosen]
    y = net.logits(x, torch.zeros(len(x), dtype=torch.long))[-1].argmax(1)
    return AttackSuite(net, x, y, chosen, budget)


def test_a_loop_under_all_attacks() -> None:
    tried = suite(attacked(a_loop()))
    attacks, parts = tried.attacks()
    names = [(one.name, one.aim, one.eps) for one in attacks]
    per_radius = [
        (FGSM, "0"),
        (FGSM, "1"),
        (FGSM, "2"),
        (PGD, "0"),
        (PGD, "1"),
        (PGD, "2"),
        (PGD, "sum"),
        (ENSEMBLE, "2"),
    ]
    assert names == [(name, aim, eps) for eps in (2.0, 8.0) for name, aim in per_radius]
    for one in attacks:
        assert len(one.accuracy) == len(one.loss) == 3
    found = {(one.name, one.aim, one.eps): one for one in attacks}
    for part in parts:
        assert part.clean == 1.0 >= part.apgd_ce >= part.apgd_dlr >= part.square
        assert found[ENSEMBLE, "2", part.eps].accuracy[2] == pytest.approx(part.square)
        assert part.square <= found[PGD, "2", part.eps].accuracy[2] <= found[FGSM, "2", part.eps].accuracy[2] + 0.05
        for step in range(3):
            aims = [found[PGD, str(aim), part.eps].loss[step] for aim in range(3)]
            assert aims[step] >= max(aims) - 1e-6, "who aims at a step raises its loss most"
    made = tried.checks(attacks, parts)
    assert len(made) == 6
    assert all(check.passed for check in made), [check for check in made if not check.passed]
    assert not tried.depends_on_batch()


def test_an_image_is_attacked_alike_in_every_company() -> None:
    net = attacked(a_loop())
    whole, part = suite(net), suite(net, indices=list(range(10, 20)))
    for one, other in ((whole.starts[:, 10:20], part.starts), (whole._start("apgd", 1)[10:20], part._start("apgd", 1))):
        assert torch.equal(one, other)
    eps = 4 / 255
    for attack in (
        lambda s: pgd(net, s.x, s.y, on_step(2), eps, s.starts),
        lambda s: apgd(net, s.x, s.y, on_step(2), 2, eps, s._start("apgd", 0)),
    ):
        torch.testing.assert_close(attack(whole)[10:20], attack(part), rtol=0, atol=1e-9)


class Masked(Attacked):
    """Rounds its input, so that the gradient is zero almost everywhere, and nothing else is gained."""

    def __init__(self, hide: Callable[[Tensor], Tensor]) -> None:
        self.layer, _ = linear(K)
        super().__init__(lambda x, y: self.layer(hide(x).flatten(1))[None])


def failed(net: Attacked) -> set[str]:
    tried = suite(net)
    return {check.name for check in tried.checks(*tried.attacks()) if not check.passed}


def test_hidden_gradients_are_seen() -> None:
    assert failed(Masked(lambda x: x)) == set()
    rounded = failed(Masked(lambda x: (16 * x).round() / 16 + 0 * x))
    assert {"gradients do not vanish", "nothing survives a large eps"} <= rounded
    assert "random search breaks no more than gradients" in rounded


def test_a_loop_that_hides_its_gradient_is_seen_by_the_blind_attack() -> None:
    layer, _ = linear(K)

    def outputs(x: Tensor, y: Tensor) -> Tensor:
        first = layer(x.flatten(1))
        last = first.detach() + 1e-3 * layer(x.flip(1).flatten(1))  # the answer moves, its gradient points elsewhere
        return torch.stack([first, last])

    assert "seeing the loop helps the attacker" in failed(Attacked(outputs))


def test_the_checks_by_hand() -> None:
    assert checks.slack(1000) == 0.01
    assert checks.slack(20) == 0.1
    assert checks.no_zero_gradients(5, 100).passed
    assert not checks.no_zero_gradients(6, 100).passed
    names = ("A", "B")
    assert checks.stronger("x", {1.0: 0.5, 2.0: 0.3}, {1.0: 0.5, 2.0: 0.4}, 1000, names).passed
    worse = checks.stronger("x", {1.0: 0.5, 2.0: 0.45}, {1.0: 0.5, 2.0: 0.4}, 1000, names)
    assert not worse.passed
    assert worse.detail == "at eps 2/255, A leaves 45.0% right, B 40.0%"
    assert checks.rises({1.0: 0.5, 2.0: 0.4}, {1.0: 1.0, 2.0: 1.5}, 1000).passed
    assert not checks.rises({1.0: 0.5, 2.0: 0.52}, {1.0: 1.0, 2.0: 1.5}, 1000).passed
    falling = checks.rises({1.0: 0.5, 2.0: 0.5}, {1.0: 1.0, 2.0: 0.5}, 1000)
    assert not falling.passed
    assert "up to eps 2/255" in falling.detail
    assert not checks.falls_to_nothing(0.06, 128).passed
    assert not checks.black_box_adds_little({1.0: 0.0, 2.0: 0.03}, 500).passed
    assert checks.black_box_adds_little({1.0: 0.0, 2.0: 0.02}, 500).passed
    assert checks.black_box_adds_little({1.0: 0.04}, 50).passed, "two images"


def test_a_context_of_another_sample_is_noticed() -> None:
    layer, _ = linear(K)
    net = Attacked(lambda x, y: layer((x + 0.1 * x.roll(1, 0)).flatten(1))[None])
    assert suite(net).depends_on_batch()


def test_two_classes_have_no_ratio_of_logits() -> None:
    _, net = linear(2)
    attacks, parts = suite(net).attacks()
    assert [part.apgd_dlr for part in parts] == [part.apgd_ce for part in parts]
    assert {one.aim for one in attacks} == {"0"}


def test_as_strong_as_another_library() -> None:
    art = pytest.importorskip("art.attacks.evasion")
    import numpy as np
    from art.estimators.classification import PyTorchClassifier

    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, K)).eval()
    x = pixels(60).float()
    y = model(x).argmax(1)
    net = Attacked(lambda x, y: model(x)[None])
    wrapped = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), SHAPE, K, clip_values=(0.0, 1.0), channels_first=True, device_type="cpu"
    )
    eps, common = 4 / 255, {"norm": np.inf, "batch_size": 60, "verbose": False}
    np.random.seed(0)  # the library draws from it

    def right(z: Tensor) -> float:
        return float((model(z).argmax(1) == y).float().mean())

    def theirs(attack: object) -> float:
        return right(torch.from_numpy(attack.generate(x.numpy(), y.numpy())))  # type: ignore[attr-defined]

    adaptive = art.AutoProjectedGradientDescent
    for objective, loss in ((on_step(0), "cross_entropy"), (dlr_on_step(0), "difference_logits_ratio")):
        ours = right(apgd(net, x, y, objective, 0, eps, starts(x)[0].float(), steps=30))
        other = theirs(
            adaptive(wrapped, eps=eps, eps_step=2 * eps, max_iter=30, nb_random_init=1, loss_type=loss, **common)
        )
        assert ours <= other + 0.02, loss
        assert 0.05 < ours < 0.95
    ours = right(square(net, x, y, 0, eps, uniform(60, 300, 5), uniform(60, 3, 8)))
    assert ours <= theirs(art.SquareAttack(wrapped, eps=eps, max_iter=300, nb_restarts=1, **common)) + 0.1
    assert right(fgsm(net, x, y, on_step(0), eps)) == pytest.approx(
        theirs(art.FastGradientMethod(wrapped, eps=eps, norm=np.inf)), abs=0.02
    )


def test_the_only_sample_left_is_answered_beside_another() -> None:
    """As `shuffled-context` needs; the ensemble goes on with the images that are left, which may be one."""
    layer, plain = linear(3)
    sizes = []

    def outputs(x: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return layer(x.flatten(1))[None]

    net, x, y = Attacked(outputs), pixels(1), torch.tensor([1])
    torch.testing.assert_close(net.logits(x, y), plain.logits(x, y))
    value, slope, logits = net.gradient(x, y, on_step(0))
    assert (value.shape, slope.shape, logits.shape) == ((1,), x.shape, (1, 1, 3))
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(layer(x.requires_grad_().flatten(1)), y), x)
    torch.testing.assert_close(slope, expected)
    assert min(sizes) == 2
