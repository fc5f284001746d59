from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import torchcbl as cbl
from torchcbl.lab.arms import ARMS, derive_seed, example_of, find_arm, seeded
from torchcbl.lab.data import load_data
from torchcbl.lab.experiment import Experiment
from torchcbl.lab.recipe import ARM_NAMES, load_recipe
from torchcbl.lab.runs import Run

RECIPE = load_recipe("demo", {"width": "4", "validation_size": "100"})
LOOPS = ["cbl", "cbl-gate"]
SHAPE = (1, 8, 8)


def build(name: str, seed: int = 0) -> nn.Module:
    return find_arm(name).build(RECIPE, SHAPE, num_classes=10, seed=seed)


def backbone_of(model: nn.Module) -> nn.Module:
    return model.backbone if isinstance(model, cbl.ContextLoop) else model


def train_one_step(name: str, model: nn.Module) -> None:
    x, target = images(32), torch.arange(32) % 10
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    find_arm(name).loss(model.train(), x, target).backward()
    optimizer.step()


def images(size: int) -> Tensor:
    return torch.randn(size, *SHAPE, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", LOOPS)
def test_all_arms_start_from_the_same_backbone_weights(name: str) -> None:
    plain, own = build("standard").state_dict(), backbone_of(build(name)).state_dict()
    assert plain.keys() == own.keys()
    assert all(torch.equal(plain[key], own[key]) for key in plain)


@pytest.mark.parametrize("name", ["standard", *LOOPS])
def test_another_seed_gives_other_weights(name: str) -> None:
    first, second = (backbone_of(build(name, seed)).get_parameter("fc2.weight") for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", LOOPS)
def test_all_arms_see_the_same_batches_in_the_same_order(name: str, tmp_path: Path) -> None:
    dataset = load_data("digits", validation_size=100)

    def batches(arm: str, epoch: int) -> list[tuple[Tensor, Tensor]]:
        loader = Experiment(Run(RECIPE, arm, 3, tmp_path), dataset).train_dataloader()
        loader.set_epoch(epoch)
        return list(loader)

    plain, own, later = batches("standard", 1), batches(name, 1), batches(name, 2)
    assert len(plain) == len(own) > 1
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(plain, own, strict=True))
    assert not torch.equal(own[0][0], later[0][0])


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_starts_as_the_plain_network_bit_for_bit(name: str) -> None:
    x = images(8)
    plain, loop = build("standard").eval(), build(name).eval()
    with torch.no_grad():
        outputs = find_arm(name).outputs(loop, x)
        assert len(outputs) == RECIPE.steps + 1
        assert all(torch.equal(y, plain(x)) for y in outputs)


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_differs_from_the_plain_network_after_a_training_step(name: str) -> None:
    plain, loop = build("standard"), build(name)
    for arm, model in (("standard", plain), (name, loop)):
        train_one_step(arm, model)
    with torch.no_grad():
        outputs = find_arm(name).outputs(loop.eval(), images(8))
        assert not torch.allclose(outputs[-1], plain.eval()(images(8)))
        assert not torch.allclose(outputs[-1], outputs[0])


@pytest.mark.parametrize("name", LOOPS)
def test_every_parameter_of_a_loop_learns(name: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.named_parameters()}
    for _ in range(2):  # at an identity start, the context gets no gradient at the first step
        train_one_step(name, model)
    assert all(not torch.equal(value, before[key]) for key, value in model.named_parameters())
    assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in backbone_of(model).parameters())


def test_the_losses_are_what_the_arms_are_named_for() -> None:
    x, target = images(16), torch.arange(16) % 10
    for name, weights in (("cbl", "uniform"), ("cbl-gate", "last")):
        model = build(name)
        train_one_step(name, model)
        model.eval()
        expected = cbl.refinement_loss(model.refine(x), target, weights=weights)  # type: ignore[operator]
        assert torch.equal(find_arm(name).loss(model, x, target), expected)
    plain = build("standard").eval()
    loss = nn.functional.cross_entropy(plain(x), target)
    assert torch.equal(find_arm("standard").loss(plain, x, target), loss)


def test_building_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build("cbl")
    assert torch.equal(torch.rand(3), expected)


def test_arms_are_those_that_recipes_know() -> None:
    assert tuple(ARMS) == ARM_NAMES
    with pytest.raises(ValueError, match=r"unknown arm 'cbl-gat': did you mean 'cbl-gate'\?"):
        find_arm("cbl-gat")


def test_derived_seeds_differ_by_every_part() -> None:
    seeds = [derive_seed(*parts) for parts in ((0, "a"), (1, "a"), (0, "b"), (0, 1), (1, 0))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_seeded_draws_repeat() -> None:
    with seeded(1):
        first = torch.rand(2)
    with seeded(1):
        assert torch.equal(torch.rand(2), first)
    assert torch.equal(example_of(SHAPE), example_of(SHAPE))
