"""Small networks as imported from the field's libraries: for tests/test_networks.py and docs/networks.md."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class LibraryNetwork:
    """One network.

    Attributes:
        build: makes it with random weights.
        shape: of an input batch.
        relu_only: its only activations are ``nn.ReLU`` modules and it has no products, so that the slow reference applies.
        conserves: with biases and means at zero, relevance is conserved (no additive constants, layer norms or softmax).
    """

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    relu_only: bool = False
    conserves: bool = True


def _monai() -> dict[str, LibraryNetwork]:
    from monai.networks import nets

    small = ("basic", [1, 1, 1, 1], [8, 8, 16, 16])
    deep = ("bottleneck", [1, 1, 1, 1], [8, 8, 16, 16])
    dense = {"init_features": 8, "growth_rate": 4}
    return {
        "monai DenseNet121": LibraryNetwork(lambda: nets.DenseNet121(2, 1, 3, **dense), (2, 1, 32, 32), relu_only=True),
        "monai DenseNet 3-D": LibraryNetwork(
            lambda: nets.DenseNet(3, 1, 3, block_config=(2, 2), **dense), (2, 1, 16, 16, 16), relu_only=True
        ),
        "monai ResNet": LibraryNetwork(
            lambda: nets.ResNet(*small, spatial_dims=2, n_input_channels=1, num_classes=3),
            (2, 1, 32, 32),
            relu_only=True,
        ),
        "monai ResNet 3-D": LibraryNetwork(
            lambda: nets.ResNet(*deep, spatial_dims=3, n_input_channels=1, num_classes=3),
            (1, 1, 16, 16, 16),
            relu_only=True,
        ),
        "monai SEResNet50": LibraryNetwork(
            lambda: nets.SEResNet50(spatial_dims=2, in_channels=3, num_classes=3), (1, 3, 32, 32)
        ),
        "monai EfficientNet-B0": LibraryNetwork(
            lambda: nets.EfficientNetBN(
                "efficientnet-b0", spatial_dims=2, in_channels=3, num_classes=3, pretrained=False
            ),
            (1, 3, 32, 32),
        ),
        "monai Classifier": LibraryNetwork(
            lambda: nets.Classifier(in_shape=(1, 16, 16), classes=3, channels=(4, 8), strides=(2, 2)), (2, 1, 16, 16)
        ),
        "monai Regressor": LibraryNetwork(
            lambda: nets.Regressor(in_shape=(1, 16, 16), out_shape=3, channels=(4, 8), strides=(2, 2)), (2, 1, 16, 16)
        ),
    }


def _transformers() -> dict[str, LibraryNetwork]:
    import transformers as hf

    stages = {"num_channels": 3, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 3}
    return {
        "transformers ResNet": LibraryNetwork(
            lambda: hf.ResNetForImageClassification(hf.ResNetConfig(embedding_size=8, **stages)), (2, 3, 32, 32), relu_only=True
        ),
        "transformers ConvNext": LibraryNetwork(
            lambda: hf.ConvNextForImageClassification(hf.ConvNextConfig(num_stages=2, **stages)), (2, 3, 32, 32), conserves=False
        ),
        "transformers MobileNetV2": LibraryNetwork(
            lambda: hf.MobileNetV2ForImageClassification(
                hf.MobileNetV2Config(num_channels=3, depth_multiplier=0.35, num_labels=3)
            ),
            (2, 3, 32, 32),
        ),
        "transformers RegNet": LibraryNetwork(
            lambda: hf.RegNetForImageClassification(hf.RegNetConfig(embedding_size=8, groups_width=4, **stages)), (2, 3, 32, 32)
        ),
        "transformers ViT": LibraryNetwork(
            lambda: hf.ViTForImageClassification(
                hf.ViTConfig(
                    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16,
                    patch_size=8, num_labels=3,
                )
            ),
            (2, 3, 16, 16),
            conserves=False,
        ),
    }  # fmt: skip


_TORCHVISION = (
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "squeezenet1_1",
    "googlenet", "inception_v3", "mobilenet_v2", "mobilenet_v3_small", "mnasnet0_5", "shufflenet_v2_x0_5", "efficientnet_b0",
    "efficientnet_v2_s", "regnet_y_400mf", "convnext_tiny", "vit_b_16", "swin_t", "maxvit_t",
)  # fmt: skip


def _torchvision() -> dict[str, LibraryNetwork]:
    try:
        from torchvision.models import get_model
    except Exception:  # missing, or one that does not fit this torch and fails with errors of its own
        return {}

    sizes = {"inception_v3": 96, "vit_b_16": 224, "maxvit_t": 224}
    extra = {
        "googlenet": {"aux_logits": False, "init_weights": False},
        "inception_v3": {"aux_logits": False, "init_weights": False},
    }
    transformers = ("convnext_tiny", "vit_b_16", "swin_t", "maxvit_t")
    relu_only = (
        "alexnet",
        "vgg11",
        "vgg11_bn",
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "wide_resnet50_2",
        "squeezenet1_1",
    )
    networks = {}
    for name in _TORCHVISION:
        size = sizes.get(name, 64)
        networks[f"torchvision {name}"] = LibraryNetwork(
            lambda name=name: get_model(name, weights=None, num_classes=3, **extra.get(name, {})),
            (1, 3, size, size),
            relu_only=name in relu_only,
            conserves=name not in transformers,
        )
    return networks


NETWORKS: dict[str, LibraryNetwork] = {**_monai(), **_transformers(), **_torchvision()}


def build(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A float64 network in evaluation mode and a fixed batch for it."""
    network = NETWORKS[name]
    torch.manual_seed(0)
    model = network.build().double().eval()
    for module in model.modules():
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)  # some libraries start too small: deep activations vanish
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            module.running_mean.normal_(0, 0.05)
            module.running_var.uniform_(0.7, 1.3)
    return model, torch.rand(network.shape, dtype=torch.float64)


def without_constants(model: nn.Module) -> nn.Module:
    """Sets all biases and running means to zero: relevance is then conserved where the rules conserve it."""
    for module in model.modules():
        for name in ("bias", "running_mean"):
            tensor = getattr(module, name, None)
            if isinstance(tensor, torch.Tensor):
                tensor.data.zero_()
    return model
