"""Text through the loop: padding is not seen, causal models stay causal, `generate` is what it would be by hand."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import torchcbl as cbl
from hub_models import MODELS
from subject import Subject, awaken, output_of
from torchcbl.adapters import ADAPTERS
from torchcbl.schedules import SCHEDULES

pytest.importorskip("transformers")

CAUSAL = ["GPT-2", "Llama"]
MASKED = ["BERT", "DistilBERT", "RoBERTa", "T5 encoder"]
VARIANTS = [(adapter, "repropagate") for adapter in ADAPTERS] + [("film", "literal"), ("film", "synchronous")]
NEW, BEAMS = 4, 3


def subject(name: str, adapter: str = "film", schedule: str = "repropagate", **context: object) -> Subject:
    model = MODELS[name]
    return Subject(model.build, model.sites, model.batch, adapter, schedule, context={**model.context, **context})


@functools.cache
def causal(name: str) -> cbl.ContextLoop:
    """A loop that is awake, in eval mode; tests leave it as it is."""
    return subject(name).net(awake=True)


def _no_shorter(padded: dict[str, Tensor]) -> tuple[dict[str, Tensor], int]:
    """The first sample without its padding, and its length."""
    length = int(padded["attention_mask"][0].sum())
    assert length < padded["attention_mask"].shape[1], "there is no padding, so this shows nothing"
    return {key: value[:1, :length] for key, value in padded.items()}, length


@pytest.mark.parametrize(("adapter", "schedule"), VARIANTS)
@pytest.mark.parametrize("name", MASKED)
def test_padding_is_not_seen(name: str, adapter: str, schedule: str) -> None:
    _check_padding(subject(name, adapter, schedule).net(awake=True), MODELS[name].batch(3))


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("name", ["RoBERTa", "T5 encoder"])
def test_padding_is_not_seen_by_one_context_per_sample(name: str, adapter: str) -> None:
    _check_padding(subject(name, adapter, per="sample").net(awake=True), MODELS[name].batch(3))


@torch.no_grad()
def _check_padding(net: cbl.ContextLoop, padded: dict[str, Tensor]) -> None:
    whole, length = _no_shorter(padded)
    alone, beside = net.refine(**whole).output[0], net.refine(**padded).output[0]
    torch.testing.assert_close(beside[:length] if beside.ndim > 1 else beside, alone, rtol=1e-5, atol=2e-6)
    other = {**padded, "input_ids": torch.where(padded["attention_mask"] == 0, 7, padded["input_ids"])}
    refilled = net.refine(**other).output[0]
    torch.testing.assert_close(refilled[:length] if refilled.ndim > 1 else refilled, alone, rtol=1e-5, atol=2e-6)


class Bidirectional(nn.Module):
    """Its mask stands in the second place, and has a decoder's name where it is one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Embedding(20, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        h = torch.tanh(self.layer(self.embed(input_ids)))
        mean = (h * attention_mask[..., None]).sum(1, keepdim=True) / attention_mask.sum(1)[:, None, None]
        return self.head(h + mean)


class Decoder(Bidirectional):
    def forward(self, decoder_input_ids: Tensor, decoder_attention_mask: Tensor) -> Tensor:
        return super().forward(decoder_input_ids, decoder_attention_mask)


@pytest.mark.parametrize("cut", ["traced", "replayed"])
@pytest.mark.parametrize(("adapter", "per"), [("film", "sample"), ("attention", None)])
@pytest.mark.parametrize("make", [Bidirectional, Decoder])
@torch.no_grad()
def test_padding_is_not_seen_where_the_mask_is_given_by_position(
    make: type[Bidirectional], adapter: str, per: str | None, cut: str
) -> None:
    ids, mask = torch.randint(1, 20, (3, 6)), torch.ones(3, 6)
    mask[:, 4:] = 0
    net = cbl.ContextLoop(make(), "layer", (ids, mask), adapter, cbl.Context(dim=5, per=per), cut=cut).eval()
    awaken(net)
    refined, refilled = net(ids, mask), net(torch.where(mask == 0, 7, ids), mask)
    assert not torch.equal(refined, net.backbone(ids, mask)), "the adapters are asleep, so this shows nothing"
    torch.testing.assert_close(refilled[:, :4], refined[:, :4], rtol=1e-5, atol=2e-6)


ALL_CAUSAL = [("GPT-2", adapter, schedule) for adapter in ADAPTERS for schedule in SCHEDULES]


@pytest.mark.parametrize(("name", "adapter", "schedule"), [*ALL_CAUSAL, *(("Llama", *variant) for variant in VARIANTS)])
@torch.no_grad()
def test_later_tokens_change_no_earlier_output(name: str, adapter: str, schedule: str) -> None:
    net, batch = subject(name, adapter, schedule).net(awake=True), MODELS[name].batch(2)
    assert all(site.causal for site in net.sites)
    before = net.refine(**batch, steps=3)
    ids = batch["input_ids"].clone()
    ids[:, 4:] = (ids[:, 4:] + 9) % 50
    after = net.refine(input_ids=ids, steps=3)
    for early, late in zip(before.outputs, after.outputs, strict=True):
        torch.testing.assert_close(late[:, :4], early[:, :4], rtol=1e-5, atol=2e-6)
        assert not torch.isclose(late[:, 4:], early[:, 4:]).all(-1).any(), "later outputs should have moved"
    assert not torch.allclose(before.outputs[0], before.output), "the adapters are asleep, so this shows nothing"


class Leak(cbl.Adapter):
    """Shows each position the mean of the context over all of them."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__(site, context_dim)
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + self.linear(z).mean(dim=1, keepdim=True)


class Smear(Leak):
    """Lets each position of h see the next one."""

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + self.linear(z) * h.roll(-1, dims=1)


@pytest.mark.parametrize("name", CAUSAL)
@pytest.mark.parametrize(
    "options",
    [{"adapter": Leak}, {"adapter": Smear}, {"context": cbl.Context(per="sample")}],
    ids=["context", "states", "pooled"],
)
def test_what_would_see_the_future_is_refused(name: str, options: dict[str, object]) -> None:
    model = MODELS[name]
    message = (
        rf"causal at site '{model.sites[0]}', but with feedback its outputs before position \d see what comes later"
    )
    with pytest.raises(ValueError, match=message):
        cbl.ContextLoop(model.build(), model.sites, model.batch(2), **options)  # type: ignore[arg-type]
    model = MODELS["RoBERTa"]
    cbl.ContextLoop(model.build(), model.sites, model.batch(2), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("padded", [slice(0, 3), slice(-3, None)], ids=["left", "right"])
@pytest.mark.parametrize("adapter", ["attention", "token"])
def test_an_example_with_padding_is_not_taken_for_a_leak(adapter: str, padded: slice) -> None:
    model = MODELS["GPT-2"]
    batch = model.batch(2)
    mask = torch.ones_like(batch["input_ids"])
    mask[0, padded] = 0
    net = cbl.ContextLoop(model.build(), model.sites, {**batch, "attention_mask": mask}, adapter=adapter)
    assert all(site.causal for site in net.sites)


class Heads(nn.Module):
    """A language model of one attention layer, whose queries (B, N, heads, d) are normalised by head."""

    def __init__(self, causal: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32)
        self.qkv = nn.Linear(32, 96)
        self.norm = nn.LayerNorm(8)
        self.out = nn.Linear(32, 50)
        self.causal = causal

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = (part.unflatten(-1, (4, 8)) for part in self.qkv(x).chunk(3, dim=-1))
        q, k, v = (part.transpose(1, 2) for part in (self.norm(q), k, v))
        found = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(x + found.transpose(1, 2).flatten(2))


class PerHead(cbl.Adapter):
    """Shifts every head of a position by the context there."""

    def __init__(self, site: cbl.Site, context_dim: int) -> None:
        super().__init__(site, context_dim)
        self.linear = nn.Linear(context_dim, site.channels)

    def forward(self, h: Tensor, z: Tensor) -> Tensor:
        return h + self.linear(z).unsqueeze(2)


IDS = torch.randint(0, 50, (2, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("sites", "options"),
    [
        ("norm", {"adapter": "attention"}),
        ("norm", {"context": cbl.Context(per="sample")}),
        (["qkv", "norm"], {"adapter": {"qkv": "film", "norm": "attention"}}),
    ],
    ids=["attention", "pooled", "beside a causal site"],
)
def test_the_future_is_not_seen_at_a_site_of_any_shape(sites: str | list[str], options: dict[str, object]) -> None:
    way = r"Leave out Context\(per='sample'\), and choose a site whose states have the output's positions, \(B, N, C\)"
    message = rf"causal at site 'norm', but with feedback its outputs before position \d see what comes later: .*{way}"
    with pytest.raises(ValueError, match=message):
        cbl.ContextLoop(Heads(), sites, IDS, **options)  # type: ignore[arg-type]
    cbl.ContextLoop(Heads(causal=False), sites, IDS, **options)  # type: ignore[arg-type]


@torch.no_grad()
def test_what_keeps_a_site_of_four_axes_causal_is_allowed() -> None:
    net = awaken(cbl.ContextLoop(Heads(), "norm", IDS, adapter=PerHead)).eval()
    later = torch.cat([IDS[:, :6], (IDS[:, 6:] + 1) % 50], dim=1)
    torch.testing.assert_close(net(later)[:, :6], net(IDS)[:, :6], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(net(IDS), net.backbone(IDS))


class Tagger(nn.Module):
    """One attention layer, scaled and weighted by position, and a head that may start at zero."""

    def __init__(self, causal: bool, silent: bool = False, scale: float = 1.0) -> None:
        super().__init__()
        self.causal = causal
        self.embed, self.kinds, self.norm = nn.Embedding(50, 16), nn.Embedding(1, 16), nn.LayerNorm(16)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 50)
        self.scale = nn.Parameter(torch.full((16,), scale))
        if silent:
            nn.init.zeros_(self.head.weight)

    def forward(
        self, ids: Tensor, labels: Tensor | None = None, kinds: Tensor | None = None, weights: Tensor | None = None
    ) -> Tensor:
        h = self.norm(self.embed(ids) if kinds is None else self.embed(ids) + self.kinds(kinds))
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).triu(1) if self.causal else None
        y = self.head(h + self.scale * self.attention(h, h, h, attn_mask=later, need_weights=False)[0])
        return y if weights is None else y * weights[..., None]


@pytest.mark.parametrize("options", [{"silent": True}, {"scale": 1e-5}, {"scale": 1e-6}, {"scale": 0.0}])
def test_weights_that_hide_what_is_seen_are_moved(options: dict[str, object]) -> None:
    pooled = cbl.Context(per="sample")
    net = cbl.ContextLoop(Tagger(causal=False, **options), "norm", IDS, context=pooled)  # type: ignore[arg-type]
    assert not net.sites[0].causal
    causal = Tagger(causal=True, **options)  # type: ignore[arg-type]
    assert cbl.ContextLoop(causal, "norm", IDS, adapter="attention").sites[0].causal
    with pytest.raises(ValueError, match="causal at site 'norm', but with feedback its outputs before position 1"):
        cbl.ContextLoop(causal, "norm", IDS, context=pooled)


@pytest.mark.parametrize("causal", [False, True])
def test_every_argument_is_tried(causal: bool) -> None:
    for others in ({"labels": IDS}, {"kinds": torch.zeros_like(IDS)}, {"weights": torch.rand(IDS.shape)}):
        for example in ({**others, "ids": IDS}, {"ids": IDS, **others}):
            net = cbl.ContextLoop(Tagger(causal), "norm", example, adapter="attention")
            assert net.sites[0].causal == causal, list(example)


class Strict(Tagger):
    """Takes a certain token at one position alone."""

    def __init__(self, position: int) -> None:
        super().__init__(causal=True)
        self.position = position

    def forward(self, ids: Tensor) -> Tensor:
        if not torch.equal(ids[:, self.position], IDS[: len(ids), self.position]):
            raise ValueError(f"there is a wrong token at {self.position}")
        return super().forward(ids)


def test_what_cannot_be_tried_is_an_error() -> None:
    with pytest.raises(ValueError, match="there is a wrong token at -1"):
        cbl.ContextLoop(Strict(-1), "norm", IDS)
    assert cbl.ContextLoop(Strict(0), "norm", IDS).sites[0].causal, "a text may have to begin with a certain token"


class Translator(nn.Module):
    """An encoder-decoder: its decoder sees the source whole and the target in its order."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.target, self.norm = nn.Embedding(50, 16), nn.Embedding(50, 16), nn.LayerNorm(16)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, 50)

    def forward(self, ids: Tensor, target: Tensor) -> Tensor:
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        memory = self.encoder(self.embed(ids))
        return self.head(self.decoder(self.norm(self.target(target)), memory, tgt_mask=later))


@pytest.mark.parametrize("length", [10, 7])
@torch.no_grad()
def test_the_target_of_an_encoder_decoder_is_not_seen_early(length: int) -> None:
    ids, options = IDS.flip(1)[:, :length], {"adapter": "attention", "context": cbl.Context(dim=5)}
    net = awaken(cbl.ContextLoop(Translator(), "norm", (ids, IDS), **options)).eval()
    assert net.sites[0].causal
    later = torch.cat([IDS[:, :6], (IDS[:, 6:] + 1) % 50], dim=1)
    assert not torch.allclose(net(ids, IDS), net.backbone(ids, IDS)), "the adapters are asleep, so this shows nothing"
    torch.testing.assert_close(net(ids, later)[:, :6], net(ids, IDS)[:, :6], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="causal at site 'encoder', but with feedback its outputs before position 1"):
        cbl.ContextLoop(Translator(), "encoder", (ids, IDS), **options)
    cbl.ContextLoop(Translator(), "encoder", (ids, IDS), "attention", cbl.Context(dim=5, source="encoder"))


def _next(net: cbl.ContextLoop, ids: Tensor) -> Tensor:
    """Log probabilities (B, V) of the next token, by the loop's own forward."""
    return output_of(net(input_ids=ids))[:, -1].log_softmax(dim=-1)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_greedy_generation(name: str) -> None:
    net, ids = causal(name), MODELS[name].batch(2)["input_ids"]
    plain = net.backbone.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    expected = ids
    for _ in range(NEW):
        expected = torch.cat([expected, _next(net, expected).argmax(-1, keepdim=True)], dim=1)
    generated = net.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, expected)
    assert not torch.equal(generated, plain), "feedback has changed no token, so this shows nothing"
    again = net.backbone.generate(ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert torch.equal(again, plain), "the backbone generates otherwise than before"


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_sampled_generation(name: str) -> None:
    net, ids = causal(name), MODELS[name].batch(2)["input_ids"]
    torch.manual_seed(4)
    expected = ids
    for _ in range(NEW):
        expected = torch.cat([expected, torch.multinomial(_next(net, expected).exp(), 1)], dim=1)
    torch.manual_seed(4)
    generated = net.generate(ids, max_new_tokens=NEW, do_sample=True, top_k=0, eos_token_id=None)
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_beam_search(name: str) -> None:
    net, ids = causal(name), MODELS[name].batch(2)["input_ids"]
    best = torch.cat([_beam_by_hand(net, one[None]) for one in ids])
    generated = net.generate(ids, max_new_tokens=NEW, num_beams=BEAMS, do_sample=False, eos_token_id=None)
    assert torch.equal(generated, best)


def _beam_by_hand(net: cbl.ContextLoop, ids: Tensor) -> Tensor:
    kept, scores = ids, torch.zeros(1)
    for _ in range(NEW):
        log_probabilities = scores[:, None] + _next(net, kept)
        scores, places = log_probabilities.flatten().topk(BEAMS)
        row, token = places // log_probabilities.shape[1], places % log_probabilities.shape[1]
        kept = torch.cat([kept[row], token[:, None]], dim=1)
    return kept[:1]


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_prompts_padded_on_the_left(name: str) -> None:
    net, ids = causal(name), MODELS[name].batch(2)["input_ids"]
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.long), ids], dim=1)
    mask = torch.cat([torch.zeros(2, 3, dtype=torch.long), torch.ones_like(ids)], dim=1)
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    generated = net.generate(padded, attention_mask=mask, **options)
    assert torch.equal(generated[:, 3:], net.generate(ids, **options))


class Greedy(nn.Module):
    """Generates as a language model does, token by token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 16), nn.Linear(16, 50)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embed(ids))

    def generate(self, ids: Tensor, use_cache: bool = True) -> Tensor:
        for _ in range(NEW):
            ids = torch.cat([ids, self(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
        return ids


@torch.no_grad()
def test_generation_of_a_model_with_a_forward_of_its_own() -> None:
    backbone = Greedy()
    net = awaken(cbl.ContextLoop(backbone, "embed", IDS, cut="replayed")).eval()
    calls: list[Tensor] = []

    def doubled(ids: Tensor) -> Tensor:
        calls.append(ids)
        return 2 * Greedy.forward(backbone, ids)

    backbone.forward = doubled  # as `model.forward = torch.compile(model.forward)` does
    expected = IDS
    for _ in range(NEW):
        expected = torch.cat([expected, net(expected)[:, -1].argmax(-1, keepdim=True)], dim=1)
    generated, seen = net.generate(IDS), len(calls)
    assert not torch.equal(expected, backbone.generate(IDS)), "feedback has changed no token, so this shows nothing"
    assert torch.equal(generated, expected)
    assert seen == 2 * NEW * (net.steps + 1), "the loop has run another forward than the backbone's own"


def test_caches_are_refused() -> None:
    net, ids = causal("GPT-2"), MODELS["GPT-2"].batch(2)["input_ids"]
    for how in (net, net.generate):
        with pytest.raises(ValueError, match="GPT2LMHeadModel has use_cache: a key/value cache holds states without"):
            how(ids, use_cache=True)
    cache = net.backbone(ids).cache
    with pytest.raises(ValueError, match="GPT2LMHeadModel has past_key_values: a key/value cache"):
        net(ids, past_key_values=cache)
    assert output_of(net(ids, use_cache=False)).isfinite().all()
    with pytest.raises(TypeError, match="BertForSequenceClassification cannot generate|has no generate"):
        subject("BERT").net().generate(ids)


def test_caches_are_refused_by_their_new_name() -> None:
    net, ids = causal("GPT-2"), MODELS["GPT-2"].batch(2)["input_ids"]
    with pytest.raises(ValueError, match="GPT2LMHeadModel has cache: a key/value cache holds states without"):
        net(ids, cache=net.backbone(ids).cache)


@torch.no_grad()
def test_generation_of_a_model_with_lora() -> None:
    peft, ids = pytest.importorskip("peft"), MODELS["GPT-2"].batch(2)["input_ids"]
    config = peft.LoraConfig(target_modules=["c_attn"], r=2, fan_in_fan_out=True, task_type="CAUSAL_LM")
    lora = peft.get_peft_model(subject("GPT-2").backbone(), config).eval()
    sites = [f"base_model.model.{site}" for site in MODELS["GPT-2"].sites]
    net = awaken(cbl.ContextLoop(lora, sites, {"input_ids": ids}, context=cbl.Context(dim=5)))
    expected = ids
    for _ in range(NEW):
        expected = torch.cat([expected, _next(net, expected).argmax(-1, keepdim=True)], dim=1)
    plain = lora.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    generated = net.generate(input_ids=ids, max_new_tokens=NEW, do_sample=False, eos_token_id=None)
    assert not torch.equal(expected, plain), "feedback has changed no token, so this shows nothing"
    assert torch.equal(generated, expected)


@pytest.mark.parametrize("adapter", ["attention", "token"])
@torch.no_grad()
def test_the_mask_of_an_encoder_is_not_the_decoders(adapter: str) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.T5Config(d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, vocab_size=50)
    ids = torch.randint(2, 50, (2, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[:, 3:] = 0
    call = {"input_ids": ids[:, :7], "attention_mask": mask}
    backbone = transformers.T5ForConditionalGeneration(config).eval()
    example = {**call, "decoder_input_ids": ids[:, :5]}
    net = awaken(cbl.ContextLoop(backbone, "decoder.block.0", example, adapter, cbl.Context(dim=5)))
    seven, eight = (output_of(net(**call, decoder_input_ids=ids[:, :length])) for length in (7, 8))
    torch.testing.assert_close(seven, eight[:, :7], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("adapter", "context"), [("attention", {}), ("token", {}), ("film", {"per": "sample"})])
@torch.no_grad()
def test_padding_of_sound_is_not_seen(adapter: str, context: dict[str, str]) -> None:
    _check_sound(adapter, context)


@torch.no_grad()
def test_padding_of_sound_is_not_seen_position_by_position() -> None:
    _check_sound("film", {})


def _check_sound(adapter: str, context: dict[str, str]) -> None:
    backbone, model = subject("Wav2Vec2").backbone(), MODELS["Wav2Vec2"]
    waves = model.batch(2)["input_values"]
    mask = torch.ones(waves.shape, dtype=torch.long)
    waves[0, 600:], mask[0, 600:] = 0, 0
    padded = {"input_values": waves, "attention_mask": mask}
    net = awaken(cbl.ContextLoop(backbone, model.sites, padded, adapter, cbl.Context(dim=5, **context)))
    alone = net.refine(**{key: value[:1, :600] for key, value in padded.items()}).output[0]
    torch.testing.assert_close(net.refine(**padded).output[0, : len(alone)], alone, rtol=1e-5, atol=2e-6)
