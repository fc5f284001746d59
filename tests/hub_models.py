"""Networks of transformers, built from small configurations with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

Batch = dict[str, Tensor]


def images(size: int = 32) -> Callable[[int], Batch]:
    return lambda batch: {"pixel_values": torch.randn(batch, 3, size, size, generator=_generator())}


def tokens(length: int = 7, vocabulary: int = 50) -> Callable[[int], Batch]:
    def make(batch: int) -> Batch:
        ids = torch.randint(2, vocabulary, (batch, length), generator=_generator())
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, -2:] = 0
        return {"input_ids": ids, "attention_mask": mask}

    return make


def unmasked(length: int = 7, vocabulary: int = 50) -> Callable[[int], Batch]:
    return lambda batch: {"input_ids": torch.randint(2, vocabulary, (batch, length), generator=_generator())}


def waveform(length: int = 800) -> Callable[[int], Batch]:
    return lambda batch: {"input_values": torch.randn(batch, length, generator=_generator())}


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@dataclass(frozen=True)
class Model:
    """One network: how to build it, where feedback goes, and what it is called with.

    Args:
        build: Makes it.
        sites: Where feedback goes.
        batch: Makes a batch of so many samples.
        context: Of `Context`: "sample" where y has other positions than the sites.
    """

    build: Callable[[], nn.Module]
    sites: tuple[str, ...]
    batch: Callable[[int], Batch]
    context: dict[str, object] = field(default_factory=dict)


def _make(model: str, config: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        made: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return made

    return build


_BODY = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_VIT = {**_BODY, "image_size": 32, "patch_size": 8, "num_labels": 5}
_TEXT = {**_BODY, "vocab_size": 50, "num_labels": 5, "pad_token_id": 0}
_SPEECH = {
    **_BODY,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": 5,
    "classifier_proj_size": 8,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
    "feat_extract_norm": "layer",  # group norm over time sees padding, also without a loop
}

MODELS: dict[str, Model] = {
    "ResNet": Model(
        _make(
            "ResNetForImageClassification",
            "ResNetConfig",
            embedding_size=8,
            hidden_sizes=[8, 16, 16],
            depths=[1, 1, 1],
            layer_type="basic",
            num_labels=5,
        ),
        ("resnet.encoder.stages.0", "resnet.encoder.stages.1"),
        images(),
    ),
    "ConvNeXt": Model(
        _make(
            "ConvNextForImageClassification",
            "ConvNextConfig",
            hidden_sizes=[8, 16, 16],
            depths=[1, 1, 1],
            num_stages=3,
            num_labels=5,
        ),
        ("convnext.encoder.stages.0", "convnext.encoder.stages.1.layers.0"),
        images(),
    ),
    "ViT": Model(_make("ViTForImageClassification", "ViTConfig", **_VIT), ("vit.layers.0", "vit.layers.1"), images()),
    "DINOv2": Model(
        _make("Dinov2ForImageClassification", "Dinov2Config", **_VIT),
        ("dinov2.encoder.layer.0", "dinov2.encoder.layer.1"),
        images(),
    ),
    "Swin": Model(
        _make(
            "SwinForImageClassification",
            "SwinConfig",
            image_size=32,
            patch_size=4,
            embed_dim=8,
            depths=[1, 2],
            num_heads=[1, 2],
            window_size=4,
            num_labels=5,
        ),
        ("swin.encoder.layers.0.blocks.0", "swin.encoder.layers.1.blocks.0"),
        images(),
    ),
    "SegFormer": Model(
        _make(
            "SegformerForSemanticSegmentation",
            "SegformerConfig",
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=5,
        ),
        ("decode_head.linear_fuse", "decode_head.activation"),
        images(),
    ),
    "CLIP vision": Model(
        _make("CLIPVisionModel", "CLIPVisionConfig", **_VIT),
        ("encoder.layers.0", "encoder.layers.1"),
        images(),
    ),
    "BERT": Model(
        _make("BertForSequenceClassification", "BertConfig", **_TEXT),
        ("bert.encoder.layer.0", "bert.encoder.layer.1"),
        tokens(),
    ),
    "DistilBERT": Model(
        _make(
            "DistilBertForSequenceClassification",
            "DistilBertConfig",
            dim=16,
            hidden_dim=32,
            n_layers=3,
            n_heads=2,
            vocab_size=50,
            num_labels=5,
        ),
        ("distilbert.transformer.layer.0", "distilbert.transformer.layer.1"),
        tokens(),
    ),
    "RoBERTa": Model(
        _make("RobertaForTokenClassification", "RobertaConfig", **_TEXT),
        ("roberta.encoder.layer.0", "roberta.encoder.layer.1"),
        tokens(),
    ),
    "GPT-2": Model(
        _make(
            "GPT2LMHeadModel",
            "GPT2Config",
            n_embd=16,
            n_layer=3,
            n_head=2,
            vocab_size=50,
            n_positions=32,
            bos_token_id=0,
            eos_token_id=1,
        ),
        ("transformer.h.0", "transformer.h.1"),
        unmasked(),
    ),
    "Llama": Model(
        _make("LlamaForCausalLM", "LlamaConfig", **_BODY, num_key_value_heads=1, vocab_size=50),
        ("model.layers.0", "model.layers.1"),
        unmasked(),
    ),
    "T5 encoder": Model(
        _make("T5EncoderModel", "T5Config", d_model=16, d_ff=32, num_layers=3, num_heads=2, d_kv=8, vocab_size=50),
        ("encoder.block.0", "encoder.block.1"),
        tokens(),
    ),
    "Wav2Vec2": Model(
        _make("Wav2Vec2ForCTC", "Wav2Vec2Config", **_SPEECH, vocab_size=12),
        ("wav2vec2.encoder.layers.0", "wav2vec2.encoder.layers.1"),
        waveform(),
    ),
    "HuBERT": Model(
        _make("HubertForSequenceClassification", "HubertConfig", **_SPEECH),
        ("hubert.encoder.layers.0", "hubert.encoder.layers.1"),
        waveform(),
    ),
    "Audio Spectrogram Transformer": Model(
        _make(
            "ASTForAudioClassification",
            "ASTConfig",
            **_BODY,
            num_labels=5,
            max_length=32,
            num_mel_bins=16,
            patch_size=8,
        ),
        ("audio_spectrogram_transformer.layers.0", "audio_spectrogram_transformer.layers.1"),
        lambda batch: {"input_values": torch.randn(batch, 32, 16, generator=_generator())},
    ),
    "Whisper encoder": Model(
        _make(
            "WhisperForAudioClassification",
            "WhisperConfig",
            d_model=16,
            encoder_layers=3,
            encoder_attention_heads=2,
            encoder_ffn_dim=32,
            num_mel_bins=8,
            max_source_positions=16,
            num_labels=5,
            classifier_proj_size=8,
            vocab_size=50,
            decoder_layers=1,
            decoder_attention_heads=2,
            decoder_ffn_dim=32,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        ),
        ("encoder.layers.0", "encoder.layers.1"),
        lambda batch: {"input_features": torch.randn(batch, 8, 32, generator=_generator())},
    ),
}
