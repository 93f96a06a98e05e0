"""The networks of a GPU's first run, made without any library: DenseNet121 and ViT-B beside those of benchmarks.networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks import NETWORKS as COMMON
from benchmarks.networks import ViT, residual


class _DenseLayer(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(channels), nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(torch.relu(self.norm2(self.conv1(torch.relu(self.norm1(x))))))
        return torch.cat([x, new], 1)


class DenseNet(nn.Module):
    """Huang et al. 2017: dense blocks of pre-activation bottlenecks, halving transitions; (6, 12, 24, 16) is DenseNet121."""

    def __init__(self, blocks: tuple[int, ...], classes: int, growth: int = 32) -> None:
        super().__init__()
        channels = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 7, 2, 3, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
        layers.append(nn.MaxPool2d(3, 2, 1))
        for index, depth in enumerate(blocks):
            if index:
                layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1, bias=False)]
                layers.append(nn.AvgPool2d(2))
                channels //= 2
            for _ in range(depth):
                layers.append(_DenseLayer(channels, growth))
                channels += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.fc = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))


NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    **{name: COMMON[name] for name in ("resnet18", "resnet50", "vgg16")},
    "densenet121": lambda classes: DenseNet((6, 12, 24, 16), classes),
    "vit_b_16": lambda classes: ViT(classes),
}
# The same kinds, small enough for a processor: what a dry run measures instead.
TINY: dict[str, Callable[[int], nn.Module]] = {
    "resnet18": lambda classes: residual(4, 1, classes),
    "resnet50": lambda classes: residual(4, 2, classes),
    "vgg16": lambda classes: nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
    ),
    "densenet121": lambda classes: DenseNet((2, 2), classes, growth=4),
    "vit_b_16": lambda classes: ViT(classes, size=32, patch=8, width=16, depth=2, heads=2),
}
