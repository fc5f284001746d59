"""Each control holds equal what it says and changes what it says, and nothing else."""

import itertools
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchcbl as cbl
from torchcbl.adapters import ADAPTERS
from torchcbl.backbone.site import Site
from torchcbl.lab.arms import ARMS, find_arm
from torchcbl.lab.arms.contexts import FrozenContext, another_sample
from torchcbl.lab.arms.matched import Ensemble, num_members, training_flops
from torchcbl.lab.arms.released import RELEASED_SITES, ReleasedCNN, ScalarMeanConcat
from torchcbl.lab.arms.supervised import AuxiliaryHeads
from torchcbl.lab.arms.untied import Untied
from torchcbl.lab.networks import StandardCNN
from torchcbl.lab.recipe import ADAPTER_NAMES, SCHEDULE_NAMES, SITE_NAMES, STEP_NORM_NAMES, WEIGHT_NAMES, load_recipe
from torchcbl.lab.weights import load_weights, save_weights
from torchcbl.loss import lambda_weights
from torchcbl.schedules import SCHEDULES
from torchcbl.step_norm import STEP_NORM_MODES

RECIPE = load_recipe("demo", {"width": "4", "context_dim": "8"})
SHAPE, K = (1, 8, 8), 10
TRAINED = [name for name, arm in ARMS.items() if not arm.derived]
CONTEXTS = ["no-context", "shuffled-context", "frozen-context", "label-context"]
RELEASED = [name for name in ARMS if name.startswith("as-released")]


def build(name: str, seed: int = 0, **changes: object) -> nn.Module:
    return find_arm(name).build(replace(RECIPE, **changes), SHAPE, K, seed)  # type: ignore[arg-type]


def batch(size: int = 12, seed: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, *SHAPE, generator=generator), torch.randint(0, K, (size,), generator=generator)


def trained(name: str, steps: int = 3, **changes: object) -> nn.Module:
    """Train a little on the same batches, whatever the arm; the same dropout too."""
    arm = find_arm(name).adjusted(replace(RECIPE, **changes))  # type: ignore[arg-type]
    model = build(name, **changes).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for step in range(steps):
        optimizer.zero_grad()
        arm.loss(model, *batch(seed=step)).backward()
        optimizer.step()
    return model.eval()


def answers(name: str, model: nn.Module, x: Tensor, target: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return list(find_arm(name).outputs(model, x, target))


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", ARMS)
def test_every_arm_says_what_it_isolates_and_what_it_holds_equal(name: str) -> None:
    arm = find_arm(name)
    assert arm.name == name
    assert arm.isolates
    assert arm.holds_equal
    assert "Isolates" in (type(arm).__doc__ or "") or type(arm).__name__ in ("Loop", "Released")


def test_no_two_arms_answer_alike_after_training() -> None:
    x, target = batch()
    found = {name: answers(name, trained(name), x, target)[-1] for name in TRAINED}
    for first, second in itertools.combinations(found, 2):
        assert not torch.allclose(found[first], found[second], atol=1e-4), f"{first} equals {second}"


def test_each_control_of_the_family_begins_as_the_method_does_and_as_the_plain_network() -> None:
    x, target = batch()
    method, plain = build("cbl").eval(), build("standard").eval()
    for name in (*CONTEXTS, "no-loop-deep-supervision"):
        model = build(name).eval()
        if name in CONTEXTS:
            assert model.state_dict().keys() == method.state_dict().keys()
            assert all(torch.equal(value, model.state_dict()[key]) for key, value in method.state_dict().items())
        with torch.no_grad():
            assert torch.equal(answers(name, model, x, target)[-1], plain(x))


@pytest.mark.parametrize("name", CONTEXTS)
def test_controls_of_the_context_cost_what_the_method_costs(name: str) -> None:
    assert num_parameters(build(name)) == num_parameters(build("cbl"))
    costs = [training_flops(find_arm(arm), RECIPE, SHAPE, K) for arm in (name, "cbl")]
    assert costs[0] == pytest.approx(costs[1], rel=0.005)


class TestNoContext:
    def test_nothing_of_the_output_comes_back(self) -> None:
        model = trained("no-context")
        assert isinstance(model, cbl.ContextLoop)
        x, target = batch()
        before = answers("no-context", model, x, target)
        with torch.no_grad():
            for parameter in model.context.parameters():
                parameter.add_(torch.randn_like(parameter))
        after = answers("no-context", model, x, target)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        assert torch.equal(before[1], before[2])
        assert not torch.allclose(before[0], before[1])  # the adapters' biases still act

    def test_what_would_read_the_context_does_not_learn(self) -> None:
        first, later = build("no-context"), trained("no-context")
        moved = {k for k, v in later.named_parameters() if not torch.equal(v, first.get_parameter(k))}
        still = {k for k, _ in later.named_parameters()} - moved
        assert all(k.startswith("context.") or k.endswith("linear.weight") for k in still)
        assert any(k.startswith("context.") for k in still)
        assert any(k.endswith("linear.bias") for k in moved)


class TestShuffledContext:
    def test_an_answer_hears_of_its_partner_alone(self) -> None:
        model = trained("shuffled-context")
        x, target = batch()
        before = answers("shuffled-context", model, x, target)
        moved = x.clone()
        moved[3] += 1.0
        after = answers("shuffled-context", model, moved, target)
        changed = [i for i in range(len(x)) if not torch.equal(before[1][i], after[1][i])]
        partner = another_sample(len(x)).tolist()
        assert changed == sorted([3, partner.index(3)])

    def test_nobody_is_their_own_partner(self) -> None:
        for size in range(2, 40):
            partner = another_sample(size)
            assert bool((partner != torch.arange(size)).all())
            assert sorted(partner.tolist()) == list(range(size))
        with pytest.raises(ValueError, match=r"needs another sample .* got a batch of one"):
            another_sample(1)


class TestFrozenContext:
    def test_the_first_context_is_kept(self) -> None:
        model = trained("frozen-context")
        x, target = batch()
        outputs = answers("frozen-context", model, x, target)
        assert torch.equal(outputs[1], outputs[2])
        method = build("cbl").eval()
        method.load_state_dict(model.state_dict())
        renewed = answers("cbl", method, x, target)
        assert torch.equal(renewed[1], outputs[1])
        assert not torch.allclose(renewed[2], outputs[2])

    def test_it_is_forgotten_between_calls_and_between_threads(self) -> None:
        model, (x, target), (other, _) = trained("frozen-context"), batch(), batch(seed=8)
        expected = [answers("frozen-context", model, one, target)[-1] for one in (x, other)]
        found: dict[int, Tensor] = {}

        def call(index: int) -> None:
            found[index] = answers("frozen-context", model, (x, other)[index % 2], target)[-1]

        threads = [threading.Thread(target=call, args=(index,)) for index in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(torch.equal(found[index], expected[index % 2]) for index in range(8))

    def test_with_one_step_it_would_be_the_method(self) -> None:
        with pytest.raises(
            ValueError, match=r"frozen-context needs steps of at least 2, got 1: .* 'cbl' under another"
        ):
            build("frozen-context", steps=1)

    def test_outside_its_loop_it_is_an_error(self) -> None:
        with pytest.raises(ValueError, match="FrozenContext runs outside a FrozenLoop"):
            FrozenContext(3, 2)(torch.zeros(1, 3))

    def test_samples_that_leave_the_batch_are_an_error(self) -> None:
        model, (x, target) = trained("frozen-context"), batch()
        surest = answers("frozen-context", model, x, target)[1].softmax(1).amax(1)
        some = cbl.Confidence(float(surest.median()))
        with pytest.raises(ValueError, match="run it without a stopping rule"):
            model.refine(x, steps=4, halting=some)  # type: ignore[operator]


class TestLabelContext:
    def test_the_label_alone_comes_back(self) -> None:
        model = trained("label-context")
        x, target = batch()
        before = answers("label-context", model, x, target)
        after = answers("label-context", model, x, (target + 1) % K)
        assert torch.equal(before[0], after[0])
        assert not torch.allclose(before[1], after[1])
        assert find_arm("label-context").oracle
        assert [name for name, arm in ARMS.items() if arm.oracle] == ["label-context"]

    def test_the_wires_carry_what_the_input_does_not_say(self) -> None:
        """On labels that have nothing to do with the samples, the oracle is right and its step 0 is not."""
        recipe, arm = replace(RECIPE, width=8), find_arm("label-context")
        model = arm.build(recipe, SHAPE, K, 0).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for step in range(60):
            optimizer.zero_grad()
            arm.loss(model, *batch(64, seed=step)).backward()
            optimizer.step()
        x, target = batch(256, seed=1000)
        outputs = answers("label-context", model.eval(), x, target)
        right = [float((y.argmax(1) == target).float().mean()) for y in outputs]
        assert right[0] < 0.3
        assert right[-1] > 0.95

    def test_it_must_be_told(self) -> None:
        model, (x, target) = build("label-context"), batch()
        with pytest.raises(ValueError, match=r"must be told the 12 labels, got none: pass target="):
            find_arm("label-context").outputs(model, x)
        with pytest.raises(ValueError, match=r"must be told the 12 labels, got 5"):
            find_arm("label-context").outputs(model, x, target[:5])


class TestDeepSupervision:
    @pytest.mark.parametrize(("steps", "sites"), [(1, ["block2"]), (2, ["block1", "block2"]), (5, list(SITE_NAMES))])
    def test_as_many_losses_as_the_loop_has(self, steps: int, sites: list[str]) -> None:
        model = build("no-loop-deep-supervision", steps=steps)
        assert isinstance(model, AuxiliaryHeads)
        assert list(model.heads) == sites
        x, target = batch()
        expected = torch.stack([F.cross_entropy(y, target) for y in model.answers(x)]).mean()
        torch.testing.assert_close(find_arm("no-loop-deep-supervision").loss(model, x, target), expected)

    def test_the_answer_is_the_plain_networks_and_the_heads_only_train(self) -> None:
        model, plain, (x, target) = trained("no-loop-deep-supervision"), build("standard").eval(), batch()
        assert isinstance(model, AuxiliaryHeads)
        plain.load_state_dict(model.backbone.state_dict())
        (y,) = answers("no-loop-deep-supervision", model, x, target)
        with torch.no_grad():
            assert torch.equal(y, plain(x))
            assert torch.equal(model.answers(x)[-1], y)
        alone = trained("standard")
        assert not torch.allclose(alone(x), y)  # what the heads did to the backbone


class TestUntied:
    @pytest.mark.parametrize("alpha", [0.0, 0.4])
    def test_the_formula(self, alpha: float) -> None:
        model = trained("untied", alpha=alpha, sites=("block1", "block3")).double()
        assert isinstance(model, Untied)
        x = batch()[0].double()
        outputs, z, old = [], None, {}
        for step in range(3):
            copy, h = model.copies[step], x
            for site in SITE_NAMES:
                h = copy.get_submodule(site)(h)
                if z is not None and site != "block2":
                    linear = model.adapters[step - 1][site].linear
                    gamma, beta = (part[:, :, None, None] for part in linear(z).chunk(2, -1))
                    h = alpha * old[site] + (1 - alpha) * ((1 + gamma) * h + beta)
                old[site] = h
            outputs.append(copy.fc2(copy.fc1(h.flatten(1)).relu()))
            z = model.contexts[step](outputs[-1]) if step < 2 else None
        for found, expected in zip(model.refine(x).outputs, outputs, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)

    def test_the_copies_share_nothing_and_the_first_is_the_plain_network(self) -> None:
        model, plain = build("untied"), build("standard")
        assert isinstance(model, Untied)
        assert len(model.copies) == RECIPE.steps + 1
        assert all(torch.equal(v, model.copies[0].state_dict()[k]) for k, v in plain.state_dict().items())
        for first, second in itertools.combinations(model.copies, 2):
            assert not torch.equal(first.fc1.weight, second.fc1.weight)  # type: ignore[arg-type, union-attr]
        assert len(model.refine(batch()[0], steps=1).outputs) == 2
        method = build("cbl").state_dict()["context.map.weight"]
        assert not any(torch.equal(context.weight, method) for context in model.contexts), "each step draws its own"

    def test_other_schedules_are_refused(self) -> None:
        with pytest.raises(ValueError, match="arm 'untied' unrolls schedule 'repropagate' alone, got 'literal'"):
            build("untied", schedule="literal")


class TestMatched:
    @pytest.mark.parametrize(
        ("recipe", "shape", "changes"),
        [
            *(
                (recipe, shape, changes)
                for recipe, shape in (("cifar10", (3, 32, 32)), ("demo", (1, 8, 8)))
                for changes in ({}, {"adapter": "concat"}, {"adapter": "recurrent"}, {"steps": "5"})
            ),
            ("speech-commands", (1, 64, 101), {}),
        ],
    )
    def test_within_what_they_promise(self, recipe: str, shape: tuple[int, int, int], changes: dict[str, str]) -> None:
        chosen = load_recipe(recipe, changes)
        method, wider, plain = (find_arm(n).build(chosen, shape, K, 0) for n in ("cbl", "wider-params", "standard"))
        assert isinstance(wider, StandardCNN)
        assert num_parameters(wider) == pytest.approx(num_parameters(method), rel=0.01)
        assert num_parameters(wider) > num_parameters(plain)
        flops = [training_flops(find_arm(n), chosen, shape, K) for n in ("cbl", "wider-flops", "standard")]
        assert flops[1] == pytest.approx(flops[0], rel=0.02)
        assert flops[1] > flops[2]

    def test_the_widths_grow_alike(self) -> None:
        model = find_arm("wider-flops").build(load_recipe("cifar10"), (3, 32, 32), K, 0)
        assert isinstance(model, StandardCNN)
        factors = [found / base for found, base in zip(model.widths, (16, 32, 64), strict=True)]
        assert max(factors) / min(factors) < 1.1

    def test_what_cannot_be_matched_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"arm 'wider-flops' cannot match .* Take a larger recipe key 'width'"):
            build("wider-flops", width=1, steps=75)


class TestEnsemble:
    def test_as_many_members_as_the_flops_pay_for(self) -> None:
        for steps in (2, 3, 5):
            recipe = replace(RECIPE, steps=steps)
            n = num_members(recipe, SHAPE, K)
            method, plain = (training_flops(find_arm(name), recipe, SHAPE, K) for name in ("cbl", "standard"))
            assert n * plain <= method < (n + 1) * plain
            assert training_flops(find_arm("ensemble"), recipe, SHAPE, K) == n * plain

    def test_a_single_member_is_refused(self) -> None:
        with pytest.raises(
            ValueError, match=r"arm 'ensemble' would have a single member, since 'cbl' takes 1\.\d+ times"
        ):
            num_members(replace(RECIPE, steps=1), SHAPE, K)

    def test_the_mean_of_the_probabilities(self) -> None:
        model, (x, _) = trained("ensemble").double(), batch()
        assert isinstance(model, Ensemble)
        assert len(model.members) > 1
        expected = torch.stack([member(x.double()).softmax(1) for member in model.members]).mean(0)
        torch.testing.assert_close(model(x.double()).exp(), expected, rtol=1e-12, atol=1e-12)

    def test_each_member_learns_as_it_would_alone(self) -> None:
        together, alone = trained("ensemble"), trained("standard")
        assert isinstance(together, Ensemble)
        member = together.members[0].state_dict()
        assert all(torch.equal(value, member[key]) for key, value in alone.state_dict().items())


class TestReleased:
    def test_the_layers_that_are_known(self) -> None:
        net = ReleasedCNN()
        convolutions = [(m.in_channels, m.out_channels) for m in net.modules() if isinstance(m, nn.Conv2d)]
        linears = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
        assert convolutions == [(3, 32), (32, 64), (64, 128)]
        assert linears == [(8192, 256), (256, 10)]
        assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())

    def test_pooling_before_the_relu_changes_neither_answers_nor_gradients(self) -> None:
        net, x = ReleasedCNN(dropout=0.0), torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        h = net.conv2[0](net.conv1(x)).relu()
        h = net.conv3[0](F.max_pool2d(h, 2)).relu()
        written_out = net.fc2(net.fc1(F.max_pool2d(h, 2).flatten(1)))
        assert torch.equal(net(x), written_out)
        gradients = [torch.autograd.grad(y.square().sum(), net.parameters()) for y in (net(x), written_out)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))

    def test_the_layout_it_computes_in_changes_no_answer(self) -> None:
        net, x = ReleasedCNN(dropout=0.0).double(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
        y = net.fc2(net.fc1(net.conv3(net.conv2(net.conv1(x))).flatten(1)))
        assert x.is_contiguous()
        torch.testing.assert_close(net(x), y, rtol=1e-12, atol=1e-12)
        seen: list[bool] = []
        net.conv3.register_forward_hook(
            lambda module, given, h: seen.append(h.is_contiguous(memory_format=torch.channels_last))
        )
        net(x)
        assert seen == [True]

    @pytest.mark.parametrize("name", RELEASED)
    def test_dropout_is_where_the_name_says(self, name: str) -> None:
        model = build(name)
        backbone = find_arm(name).backbone(model)
        expected = 0.5 if name in ("as-released-standard", "as-released-cbl-dropout") else 0.0
        assert backbone.dropout.p == expected  # type: ignore[union-attr]
        assert isinstance(model, cbl.ContextLoop) == ("cbl" in name)

    def test_the_four_begin_alike(self) -> None:
        states = [find_arm(name).backbone(build(name)).state_dict() for name in RELEASED]
        for state in states[1:]:
            assert all(torch.equal(value, state[key]) for key, value in states[0].items())

    @pytest.mark.parametrize("name", ["as-released-cbl", "as-released-cbl-dropout"])
    def test_three_of_the_adapters_are_dead_as_released(self, name: str) -> None:
        model = trained(name)
        assert isinstance(model, cbl.ContextLoop)
        assert model.config.schedule == "literal"
        assert model.audit().dead == RELEASED_SITES[:3]
        x, target = batch()
        before = answers(name, model, x, target)
        with torch.no_grad():
            for key, adapter in model.adapters.items():
                if key != "fc1":
                    for parameter in adapter.parameters():
                        parameter.copy_(torch.randn_like(parameter))
        assert all(torch.equal(a, b) for a, b in zip(before, answers(name, model, x, target), strict=True))

    def test_the_adapters_formula(self) -> None:
        h, z = torch.randn(2, 5, 3, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
        adapter = ScalarMeanConcat(Site("conv1", (2, 5, 3, 3), channel_dim=1), 4).double()
        weight, bias = adapter.linear.weight[:, :, 0, 0], adapter.linear.bias
        means = z.mean(1)
        expected = torch.einsum("oc,bchw->bohw", weight[:, :5], h)
        expected = expected + (weight[:, 5] * means[:, None] + bias)[:, :, None, None]
        torch.testing.assert_close(adapter(h, z), expected.relu())
        flat = ScalarMeanConcat(Site("fc1", (2, 5), channel_dim=1), 4).double()
        v = torch.randn(2, 5, dtype=torch.float64)
        torch.testing.assert_close(
            flat(v, z), F.linear(torch.cat([v, z], 1), flat.linear.weight, flat.linear.bias).relu()
        )

    def test_the_loss_is_on_the_last_answer(self) -> None:
        model, (x, target) = build("as-released-cbl").train(), batch()
        arm = find_arm("as-released-cbl")
        torch.testing.assert_close(arm.loss(model, x, target), F.cross_entropy(arm.outputs(model, x)[-1], target))


def test_loop_free_is_the_method_without_its_steps() -> None:
    model, (x, target) = trained("cbl"), batch()
    with torch.no_grad():
        assert torch.equal(answers("cbl", model, x, target)[0], model.refine(x, steps=0).output)  # type: ignore[operator]
    arm = find_arm("loop-free")
    assert arm.derived == ("cbl", 0)
    with pytest.raises(ValueError, match="loop-free is not trained: it is cbl read at step 0; train cbl"):
        arm.build(RECIPE, SHAPE, K, 0)


@pytest.mark.parametrize("name", TRAINED)
def test_weights_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    model, (x, target) = trained(name), batch()
    expected = answers(name, model, x, target)
    save_weights(model, tmp_path)
    again = load_weights(build(name, seed=1), tmp_path).eval()
    assert all(torch.equal(a, b) for a, b in zip(expected, answers(name, again, x, target), strict=True))


def test_weights_that_are_not_there_or_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is missing: delete the run"):
        load_weights(build("standard"), tmp_path)
    save_weights(build("untied"), tmp_path)
    with pytest.raises(ValueError, match=r"(?s)does not fit or is damaged .* delete the run's record"):
        load_weights(build("standard"), tmp_path)


class TestRecipeOptions:
    def test_names_are_the_librarys(self) -> None:
        assert set(ADAPTER_NAMES) == set(ADAPTERS) - {"token"}  # which needs attention
        assert set(SCHEDULE_NAMES) == set(SCHEDULES)
        assert set(STEP_NORM_NAMES) == set(STEP_NORM_MODES)
        assert all(sum(lambda_weights(name, 3)) == pytest.approx(1) for name in WEIGHT_NAMES)

    def test_the_method_and_its_controls_obey_them_and_the_gate_keeps_its_own(self) -> None:
        changes = {"adapter": "additive", "weights": "linear", "sites": ("block2",), "step_norm": "shared"}
        for name in ("cbl", *CONTEXTS):
            model = build(name, **changes)
            assert isinstance(model, cbl.ContextLoop)
            assert model.config.adapter == "additive"
            assert [site.name for site in model.sites] == ["block2"]
            assert model.config.step_norm == "shared"
            assert find_arm(name).adjusted(replace(RECIPE, **changes)).weights == "linear"  # type: ignore[attr-defined, arg-type]
        gate = build("cbl-gate", **changes)
        assert isinstance(gate, cbl.ContextLoop)
        assert gate.config.adapter == "gate"

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("adapter", "flim", "recipe key 'adapter' must be one of film"),
            ("weights", "last-ish", "recipe key 'weights' must be one of uniform"),
            ("schedule", "", "recipe key 'schedule' must be one of repropagate"),
            (
                "sites",
                '["block2", "block1"]',
                "recipe key 'sites' must be out of block1, block2, block3, in this order",
            ),
            ("step_norm", "none", "recipe key 'step_norm' must be one of per_step"),
            ("arms", '["standard", "loop-free"]', "arm 'loop-free' is 'cbl' read at step 0: name 'cbl' among the arms"),
        ],
    )
    def test_bad_values(self, key: str, value: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            load_recipe("demo", {key: value})
