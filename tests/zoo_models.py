"""Networks of timm and torchvision, unedited, with random weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from hub_models import Batch, Model

MODES_DIFFER = "its forward does other things in train mode than in eval mode"
"""Why stochastic depth is replayed, and timm's batch norms, which count their batches in a forward of their own."""
OTHER_TYPE = "its traced graph returns another type"
"""Why segmentation is replayed: it returns an OrderedDict, which a trace makes a dict."""


@dataclass(frozen=True)
class ZooModel(Model):
    """One network, and what the loop is to find out about it.

    Args:
        axes: The channel axis of each site's hidden state.
        reason: Why the network is replayed; empty where it is traced.
    """

    axes: tuple[int, ...] = (1, 1)
    reason: str = ""


def _images(size: int, name: str = "x") -> Callable[[int], Batch]:
    def make(batch: int) -> Batch:
        return {name: torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))}

    return make


def _timm(name: str, **options: object) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        made: nn.Module = timm.create_model(name, pretrained=False, num_classes=5, **options)
        return made

    return build


def _vision(name: str, **options: object) -> Callable[[], nn.Module]:
    """A network of torchvision by its registered name, or by its class where it is to be smaller than those."""

    def build() -> nn.Module:
        import torchvision

        if hasattr(torchvision.models, name) and isinstance(getattr(torchvision.models, name), type):
            made: nn.Module = getattr(torchvision.models, name)(num_classes=5, **options)
        else:
            made = torchvision.models.get_model(name, weights=None, num_classes=5, **options)
        return made

    return build


def _convnext() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    stages = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, 48, 2), CNBlockConfig(48, None, 1)]
    made: nn.Module = ConvNeXt(stages, stochastic_depth_prob=0.1, num_classes=5)
    return made


def _settled(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Feed the batch norms once, since with fresh statistics the states of some networks die out."""

    def settled() -> nn.Module:
        network = build().train()
        with torch.no_grad():
            network(torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
        return network.eval()

    return settled


def _fcn() -> nn.Module:
    from torchvision.models import resnet18
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.fcn import FCN, FCNHead

    below = IntermediateLayerGetter(resnet18(weights=None), {"layer3": "out"})
    made: nn.Module = FCN(below, FCNHead(256, 5))
    return made


def _mixer() -> nn.Module:
    from timm.models.mlp_mixer import MlpMixer

    made: nn.Module = MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=4, embed_dim=32)
    return made


def _head_drawn(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Draw the weights of a last layer that starts at zero, which hides from the output all that is below it."""

    def drawn() -> nn.Module:
        made = build()
        last = [module for module in made.modules() if isinstance(module, nn.Linear)][-1]
        nn.init.normal_(last.weight, std=0.1)
        return made

    return drawn


_32, _64 = _images(32), _images(64)
_SWIN = {"embed_dim": 16, "depths": [2, 2, 2], "num_heads": [1, 2, 4]}
_VIT = {"image_size": 32, "patch_size": 8, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
_MAXVIT = {
    "input_size": (64, 64),
    "stem_channels": 16,
    "partition_size": 4,
    "block_channels": [16, 32, 32],
    "block_layers": [1, 1, 1],
    "head_dim": 8,
    "stochastic_depth_prob": 0.2,
}
_SWIN_SITES = ("layers.1.blocks.0", "layers.1")
_DENSE_SITES = ("features.transition1", "features.denseblock3")

TIMM: dict[str, ZooModel] = {
    "timm resnet18": ZooModel(_timm("resnet18"), ("layer2", "layer3.0"), _32),
    "timm efficientnet_b0": ZooModel(_timm("efficientnet_b0"), ("blocks.2", "blocks.4.0"), _32, reason=MODES_DIFFER),
    "timm mobilenetv3_small": ZooModel(
        _timm("mobilenetv3_small_050"), ("blocks.1", "blocks.3"), _32, reason=MODES_DIFFER
    ),
    "timm regnetx_002": ZooModel(_timm("regnetx_002"), ("s2", "s3.b2"), _32, reason=MODES_DIFFER),
    "timm densenet121": ZooModel(
        _timm("densenet121", block_config=(2, 2, 3, 2)), _DENSE_SITES, _32, reason=MODES_DIFFER
    ),
    "timm convnext_atto": ZooModel(_timm("convnext_atto", depths=(1, 1, 4, 1)), ("stages.1", "stages.2.blocks.2"), _32),
    "timm vit_tiny": ZooModel(
        _timm("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=6), ("blocks.1", "blocks.3"), _32, axes=(2, 2)
    ),
    "timm swin_tiny": ZooModel(
        _timm("swin_tiny_patch4_window7_224", img_size=64, window_size=4, **_SWIN),
        _SWIN_SITES,
        _64,
        axes=(3, 3),
        reason=MODES_DIFFER,
    ),
    "timm maxvit": ZooModel(_timm("test_maxvit", img_size=64), ("stages.0", "stages.2"), _64, reason=MODES_DIFFER),
    "timm mixer": ZooModel(_head_drawn(_mixer), ("blocks.1", "blocks.2"), _32, axes=(2, 2)),
}

TORCHVISION: dict[str, ZooModel] = {
    "torchvision resnet18": ZooModel(_vision("resnet18"), ("layer2", "layer3.0"), _32),
    "torchvision efficientnet_b0": ZooModel(
        _vision("efficientnet_b0"), ("features.3", "features.5.0"), _32, reason=MODES_DIFFER
    ),
    "torchvision mobilenet_v3_small": ZooModel(_vision("mobilenet_v3_small"), ("features.3", "features.8"), _32),
    "torchvision regnet_x_400mf": ZooModel(
        _vision("regnet_x_400mf"), ("trunk_output.block2", "trunk_output.block3"), _32
    ),
    "torchvision densenet": ZooModel(_vision("DenseNet", block_config=(2, 2, 3, 2)), _DENSE_SITES, _32),
    "torchvision convnext": ZooModel(_convnext, ("features.1", "features.3.0"), _64, reason=MODES_DIFFER),
    "torchvision vit": ZooModel(
        _head_drawn(_vision("VisionTransformer", **_VIT)),
        ("encoder.layers.encoder_layer_1", "encoder.layers.encoder_layer_2"),
        _32,
        axes=(2, 2),
    ),
    "torchvision swin": ZooModel(
        _vision("SwinTransformer", patch_size=[4, 4], window_size=[4, 4], **_SWIN),
        ("features.1", "features.3.0"),
        _64,
        axes=(3, 3),
        reason=MODES_DIFFER,
    ),
    "torchvision maxvit": ZooModel(_vision("MaxVit", **_MAXVIT), ("blocks.0", "blocks.1"), _64, reason=MODES_DIFFER),
    "torchvision fcn": ZooModel(_fcn, ("backbone.layer2", "backbone.layer3"), _32, reason=OTHER_TYPE),
    "torchvision lraspp_mobilenet_v3_large": ZooModel(
        _settled(_vision("lraspp_mobilenet_v3_large", weights_backbone=None)),
        ("backbone.6", "backbone.12"),
        _images(32, name="input"),
        {"per": "sample"},
        reason=OTHER_TYPE,
    ),
}

MODELS: dict[str, ZooModel] = {**TIMM, **TORCHVISION}
"""Small enough for all of the behaviours."""

FULL: dict[str, ZooModel] = {
    "timm densenet121": ZooModel(_timm("densenet121"), _DENSE_SITES, _32, reason=MODES_DIFFER),
    "timm swin_tiny": ZooModel(
        _timm("swin_tiny_patch4_window7_224", img_size=64), _SWIN_SITES, _64, axes=(3, 3), reason=MODES_DIFFER
    ),
    "timm maxvit_pico": ZooModel(
        _timm("maxvit_pico_rw_256", img_size=64), ("stages.0", "stages.2.blocks.1"), _64, reason=MODES_DIFFER
    ),
    "timm mixer_s16": ZooModel(
        _head_drawn(_timm("mixer_s16_224", img_size=64)), ("blocks.2", "blocks.5"), _64, axes=(2, 2)
    ),
    "torchvision densenet121": ZooModel(_vision("densenet121"), _DENSE_SITES, _32),
    "torchvision convnext_tiny": ZooModel(
        _vision("convnext_tiny"), ("features.3", "features.5.4"), _32, reason=MODES_DIFFER
    ),
    "torchvision vit_b_16": ZooModel(
        _head_drawn(_vision("vit_b_16", image_size=32)),
        ("encoder.layers.encoder_layer_3", "encoder.layers.encoder_layer_7"),
        _32,
        axes=(2, 2),
    ),
    "torchvision swin_t": ZooModel(
        _vision("swin_t"), ("features.3", "features.5.2"), _32, axes=(3, 3), reason=MODES_DIFFER
    ),
    "torchvision maxvit_t": ZooModel(
        _vision("maxvit_t", input_size=(224, 224)), ("blocks.2", "blocks.3"), _images(224), reason=MODES_DIFFER
    ),
    "torchvision fcn_resnet50": ZooModel(
        _vision("fcn_resnet50", weights_backbone=None), ("backbone.layer2", "backbone.layer3"), _32, reason=OTHER_TYPE
    ),
    "torchvision deeplabv3_mobilenet_v3_large": ZooModel(
        _vision("deeplabv3_mobilenet_v3_large", weights_backbone=None),
        ("backbone.6", "backbone.12"),
        _32,
        reason=OTHER_TYPE,
    ),
}
"""The same families at the size people use, for what building and one pass tell."""
