"""Networks of the benchmarks: the common shapes of ResNet, VGG and ViT as ordinary modules, and some of MONAI and transformers."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isnet.architectures import build_architecture
from isnet.experiments.trainings import NARROW_RESNET


class _BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += self.downsample(x)
        return self.relu(out)


class _Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(channels_in, 4 * width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        out += self.downsample(x)
        return self.relu(out)


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    if stride == 1 and channels_in == channels:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class ResNet(nn.Module):
    """He et al. 2015: 7x7 stem, max pooling, four stages, global average, one dense layer; ``stem`` channels, 64 in the paper."""

    def __init__(
        self, block: type[_BasicBlock] | type[_Bottleneck], depths: tuple[int, ...], classes: int, stem: int = 64
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, stem, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        layers: list[nn.Module] = []
        channels = stem
        for stage, depth in enumerate(depths):
            width = stem * 2**stage
            for index in range(depth):
                layers.append(block(channels, width, 2 if stage and not index else 1))
                channels = width * block.expansion
        self.layers = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.maxpool(self.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class VGG(nn.Module):
    """Simonyan and Zisserman 2014: 3x3 convolutions with bias, no batch norm; a global average head."""

    def __init__(self, widths: tuple[int | None, ...], classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for width in widths:
            if width is None:
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).mean((2, 3)))


class _TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.projection = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        images, tokens, width = x.shape
        parts = self.qkv(self.norm1(x)).reshape(images, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(images, tokens, width)
        x = x + self.projection(mixed)
        return x + self.mlp(self.norm2(x))


class ViT(nn.Module):
    """Dosovitskiy et al. 2021: patches, a class token, learned positions, pre-norm blocks; the defaults are ViT-B/16."""

    def __init__(
        self, classes: int, size: int = 224, patch: int = 16, width: int = 768, depth: int = 12, heads: int = 12
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(_TransformerBlock(width, heads) for _ in range(depth)))
        self.norm, self.fc = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1) + self.positions
        return self.fc(self.norm(self.blocks(tokens))[:, 0])


def residual(width: int, depth: int, classes: int) -> nn.Module:
    """A ResNet of basic blocks, ``width`` channels in its stem, ``depth`` blocks in each stage: (64, 2) is ResNet18."""
    return ResNet(_BasicBlock, (depth,) * 4, classes, stem=width)


def _densenet121(classes: int) -> nn.Module:
    from monai.networks.nets import DenseNet121

    return DenseNet121(spatial_dims=2, in_channels=3, out_channels=classes)


class _Logits(nn.Module):
    """A network of transformers, as one that gives logits."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).logits


def _convnext(classes: int) -> nn.Module:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(depths=[2, 2, 2, 2], hidden_sizes=[48, 96, 192, 384], num_labels=classes)
    return _Logits(ConvNextForImageClassification(config))


def _efficientnet(classes: int) -> nn.Module:
    from monai.networks.nets import EfficientNetBN

    return EfficientNetBN("efficientnet-b0", spatial_dims=2, in_channels=3, num_classes=classes, pretrained=False)


def _seresnet50(classes: int) -> nn.Module:
    from monai.networks.nets import SEResNet50

    return SEResNet50(spatial_dims=2, in_channels=3, num_classes=classes)


def _resnet10_3d(classes: int) -> nn.Module:
    from monai.networks.nets import resnet10

    return resnet10(spatial_dims=3, n_input_channels=1, num_classes=classes)


_VGG11 = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512, None)
_VGG16 = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None)


def _narrow_resnet(classes: int) -> nn.Module:
    """That of the experiments, one channel."""
    return build_architecture(NARROW_RESNET.arch, NARROW_RESNET.arch_args, image_shape=(1, 40, 40), num_classes=classes)


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda classes: ResNet(_BasicBlock, (2, 2, 2, 2), classes),
    "resnet50": lambda classes: ResNet(_Bottleneck, (3, 4, 6, 3), classes),
    "resnet101": lambda classes: ResNet(_Bottleneck, (3, 4, 23, 3), classes),
    "vgg11": lambda classes: VGG(_VGG11, classes),
    "vgg16": lambda classes: VGG(_VGG16, classes),
    "densenet121": _densenet121,
    "vit": lambda classes: ViT(classes, size=112, width=192, depth=6, heads=3),
    "vit_b": lambda classes: ViT(classes),
    "convnext": _convnext,
    "efficientnet_b0": _efficientnet,
    "seresnet50": _seresnet50,
    "resnet10_3d": _resnet10_3d,
    "narrow_resnet": _narrow_resnet,
}
_VOLUMES = ("resnet10_3d",)  # they read one channel of three dimensions, the others colour images
_GREY = ("narrow_resnet",)


def images(network: str, batch: int, size: int, device: str = "cpu") -> Tensor:
    """Random images in [0, 1) of the form that a network of :data:`NETWORKS` reads, (batch, channels, size, ...).

    The vision transformers read one size, "vit" 112, "vit_b" 224.
    """
    shape = (1, size, size, size) if network in _VOLUMES else (1 if network in _GREY else 3, size, size)
    return torch.rand(batch, *shape, device=device)
