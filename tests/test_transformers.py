"""Networks of transformers, unedited: every behaviour, and what is particular to models that take labels."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import torchcbl as cbl
from behaviours import BEHAVIOURS, ESSENTIAL
from hub_models import MODELS
from subject import NotApplicableError, Subject, awaken, output_of
from torchcbl.adapters import ADAPTERS

pytest.importorskip("transformers")

NO_PICKLE = dict.fromkeys(["SegFormer", "Wav2Vec2", "HuBERT"], "the backbone alone cannot be pickled")
NO_ATTENTION = "no attention layer that torch computes"
NO_TOKEN = {
    "ResNet": NO_ATTENTION,
    "ConvNeXt": NO_ATTENTION,
    "SegFormer": NO_ATTENTION,  # its sites are in the convolutional head
    "Swin": "an attention layer after it has a batch of 2 and width 2 x 8.*not split into windows",
}


@functools.cache
def subject(name: str, **choices: object) -> Subject:
    model = MODELS[name]
    return Subject(model.build, model.sites, model.batch, context=model.context, reuse=True, **choices)  # type: ignore[arg-type]


def in_turn(everything: Sequence[str], turns: Sequence[str]) -> list[tuple[str, str]]:
    """Pair two kinds of networks, positions and images, with everything, the others with one of the turns each.

    docs/model_table.py examines all networks with all adapters.
    """
    thorough = ("BERT", "ConvNeXt")
    return [
        (name, choice)
        for i, name in enumerate(MODELS)
        for choice in (everything if name in thorough else [turns[i % len(turns)]])
    ]


@pytest.mark.parametrize("behaviour", BEHAVIOURS)
@pytest.mark.parametrize("name", MODELS)
def test_behaviour(name: str, behaviour: str) -> None:
    if behaviour == "deepcopy_and_pickle" and name in NO_PICKLE:
        with pytest.raises(NotApplicableError, match=NO_PICKLE[name]):
            BEHAVIOURS[behaviour](subject(name))
    else:
        BEHAVIOURS[behaviour](subject(name))


@pytest.mark.parametrize(("name", "schedule"), in_turn(("literal", "synchronous"), ("literal", "synchronous")))
def test_schedules(name: str, schedule: str) -> None:
    examined = subject(name, schedule=schedule)
    for behaviour in ESSENTIAL:
        BEHAVIOURS[behaviour](examined)


# `film` goes through all behaviours above
OTHERS = in_turn(sorted(ADAPTERS.keys() - {"film"}), ("attention", "token"))


@pytest.mark.parametrize(("name", "adapter"), dict.fromkeys([*OTHERS, *((name, "token") for name in NO_TOKEN)]))
def test_adapters(name: str, adapter: str) -> None:
    if adapter == "token" and name in NO_TOKEN:
        model = MODELS[name]
        with pytest.raises(ValueError, match=NO_TOKEN[name]):
            cbl.ContextLoop(model.build(), model.sites, model.batch(2), adapter=adapter)
        return
    examined = subject(name, adapter=adapter)
    for behaviour in ESSENTIAL:
        BEHAVIOURS[behaviour](examined)


def _classes(y: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(y.flatten(0, -2), labels.flatten())


def _next_tokens(y: Tensor, labels: Tensor) -> Tensor:
    return _classes(y[:, :-1], labels[:, 1:])


def _pixels(y: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.interpolate(y, labels.shape[1:], mode="bilinear", align_corners=False), labels)


def _ctc(y: Tensor, labels: Tensor) -> Tensor:
    lengths = torch.full((len(y),), y.shape[1]), torch.full((len(y),), labels.shape[1])
    return F.ctc_loss(y.log_softmax(-1).transpose(0, 1), labels, *lengths, reduction="sum")


LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[int, ...]]] = {
    "RoBERTa": (_classes, (3, 7)),
    "GPT-2": (_next_tokens, (3, 7)),
    "Llama": (_next_tokens, (3, 7)),
    "SegFormer": (_pixels, (3, 32, 32)),
    "Wav2Vec2": (_ctc, (3, 4)),
}
UNLABELLED = ("CLIP vision", "T5 encoder")


@pytest.mark.parametrize("name", sorted(MODELS.keys() - set(UNLABELLED)))
def test_the_backbones_own_loss_is_of_the_last_step(name: str) -> None:
    criterion, shape = LOSSES.get(name, (_classes, (3,)))
    net, batch = subject(name).net(), MODELS[name].batch(3)
    labels = torch.randint(1, 5, shape, generator=torch.Generator().manual_seed(2))
    plain = net.backbone(**batch, labels=labels).loss
    assert torch.equal(net(**batch, labels=labels).loss, plain), "asleep, the loss is the backbone's"
    awaken(net)
    refined = net.refine(**batch, labels=labels)
    loss = refined.returned.loss
    torch.testing.assert_close(loss, criterion(refined.output, labels))
    assert torch.equal(net(**batch, labels=labels).loss, loss)
    assert not torch.isclose(loss, plain), "the loss is that of y_0"
    loss.backward()
    assert all(any(bool(p.grad.any()) for p in adapter.parameters()) for adapter in net.adapters.values())


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize(
    "known",
    [False, True],
)
@pytest.mark.parametrize("name", ["ViT", "BERT", "GPT-2", "Wav2Vec2"])
def test_tuples_instead_of_dataclasses(name: str, known: bool, labelled: bool) -> None:
    model, batch = MODELS[name], MODELS[name].batch(3)
    extra: dict[str, object] = {"return_dict": False}
    if labelled:
        extra["labels"] = torch.ones(LOSSES.get(name, (_classes, (3,)))[1], dtype=torch.long)
    torch.manual_seed(3)
    net = awaken(cbl.ContextLoop(model.build().eval(), model.sites, {**batch, **extra} if known else batch))
    expected = net(**{**batch, **extra, "return_dict": True})
    returned = net(**batch, **extra)
    assert type(returned) is tuple
    values = [value for value in expected.values() if value is not None]
    assert len(returned) == len(values)
    assert all(torch.equal(a, b) for a, b in zip(returned, values, strict=True))
    assert not torch.equal(output_of(returned), output_of(net.backbone(**batch)))


@pytest.mark.parametrize("name", ["ViT", "BERT", "GPT-2", "Llama", "T5 encoder", "Wav2Vec2"])
def test_hidden_states_are_those_of_the_last_step(name: str) -> None:
    net, batch = subject(name).net(), MODELS[name].batch(3)
    plain = net.backbone(**batch, output_hidden_states=True).hidden_states
    asleep = net(**batch, output_hidden_states=True).hidden_states
    assert len(asleep) == len(plain) == 4, "embeddings and three layers"
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(asleep, plain, strict=True))
    awake = awaken(net)(**batch, output_hidden_states=True).hidden_states
    assert len(awake) == 4
    assert torch.equal(awake[0], plain[0]), "what is below the lowest site has changed"
    assert not any(torch.allclose(ours, theirs) for ours, theirs in zip(awake[2:], plain[2:], strict=True))


@pytest.mark.parametrize("name", ["BERT", "ResNet", "Wav2Vec2"])
def test_hooks_that_were_there_before_are_called(name: str) -> None:
    model, batch, calls = MODELS[name], MODELS[name].batch(3), []
    backbone = subject(name).backbone()
    unhooked = output_of(backbone(**batch))
    for path in model.sites:
        backbone.get_submodule(path).register_forward_hook(lambda module, args, output: _halved(output))
    backbone.register_forward_pre_hook(lambda module, args, kwargs: calls.append(len(kwargs)), with_kwargs=True)
    net = cbl.ContextLoop(backbone, model.sites, batch)
    reference = output_of(backbone(**batch))
    assert not torch.allclose(reference, unhooked)
    calls.clear()
    assert all(torch.equal(output, reference) for output in net.refine(**batch).outputs)
    assert calls, "the backbone's own hook was not called"


def _halved(output: object) -> object:
    return (output[0] * 0.5, *output[1:]) if isinstance(output, tuple) else output * 0.5  # type: ignore[operator]


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "ViT", "Wav2Vec2"])
def test_gradient_checkpointing_changes_no_gradient(name: str) -> None:
    plain = subject(name).net(awake=True).train()
    saving = copy.deepcopy(plain)
    saving.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    gradients = []
    for net in (plain, saving):
        torch.manual_seed(5)
        output_of(net(**MODELS[name].batch(3))).square().sum().backward()
        gradients.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, msg=key)


@pytest.mark.parametrize("name", ["ResNet", "BERT", "Swin"])
def test_a_frozen_backbone_stays_bit_for_bit(name: str) -> None:
    net, batch = subject(name).net(), MODELS[name].batch(4)
    before = copy.deepcopy(net.backbone.state_dict())
    net.freeze_backbone().train()
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    first = net(**batch, labels=torch.arange(4)).loss
    for _ in range(5):
        optimizer.zero_grad()
        net(**batch, labels=torch.arange(4)).loss.backward()
        optimizer.step()
    assert net(**batch, labels=torch.arange(4)).loss < first, "the adapters have learned nothing"
    after = net.backbone.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], before[key]) for key in before)
    if name == "ResNet":
        assert any("running_mean" in key for key in before), "there are no batch norms, so this shows less"


@pytest.mark.parametrize("name", ["BERT", "GPT-2"])
def test_peft_inside_the_loop(name: str) -> None:
    peft, batch = pytest.importorskip("peft"), MODELS[name].batch(3)
    torch.manual_seed(3)
    config = peft.LoraConfig(
        target_modules=["query", "value"] if name == "BERT" else ["c_attn"], r=2, fan_in_fan_out=name == "GPT-2"
    )
    lora = peft.get_peft_model(subject(name).backbone(), config)
    net = cbl.ContextLoop(lora.eval(), [f"base_model.model.{site}" for site in MODELS[name].sites], batch)
    assert all(torch.equal(output, output_of(lora(**batch))) for output in net.refine(**batch).outputs)
    output_of(awaken(net)(**batch)).square().sum().backward()
    tuned = {key: p for key, p in lora.named_parameters() if p.requires_grad}
    assert all("lora_" in key for key in tuned), "peft trains more than its own"
    assert all(bool(p.grad.any()) for key, p in tuned.items() if "lora_B" in key), "no gradient reaches LoRA"
    assert all(any(bool(p.grad.any()) for p in adapter.parameters()) for adapter in net.adapters.values())


@pytest.mark.parametrize("name", ["Wav2Vec2", "HuBERT"])
def test_layers_dropped_at_random_are_dropped_at_every_step(name: str) -> None:
    net = subject(name).net().train()  # adapters are the identity still, so all steps are alike
    net.backbone.config.layerdrop = 0.5
    dropped = 0
    for seed in range(12):
        torch.manual_seed(seed)
        try:
            outputs = net.refine(**MODELS[name].batch(3)).outputs
        except RuntimeError as error:
            dropped += "set to 0 what drops layers at random" in str(error)  # a site that is dropped has no state
            continue
        torch.testing.assert_close(outputs[1], outputs[0])
        torch.testing.assert_close(outputs[2], outputs[0])
    assert 0 < dropped < 12


def test_stochastic_depth_is_held_over_the_steps() -> None:
    net = subject("Swin").net().train()
    for module in net.backbone.modules():
        if type(module).__name__ == "SwinDropPath":
            module.drop_prob = 0.5
    outputs = net.refine(**MODELS["Swin"].batch(3)).outputs
    torch.testing.assert_close(outputs[1], outputs[0])
