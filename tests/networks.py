"""Small networks of every shape the engine must understand. All ReLUs are `make_relu()`, so that a reference can put its own in."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MakeRelu = Callable[[], nn.Module]


class VGGLike(nn.Module):
    """Convolutions with bias, max pooling, a hidden dense layer."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), make_relu(), nn.Conv2d(6, 8, 3, padding=1), make_relu(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1), make_relu(), nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(72, 16), make_relu(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class _Residual(nn.Module):
    def __init__(self, channels_in: int, channels: int, stride: int, make_relu: MakeRelu) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = make_relu()  # used twice
        self.down = None
        if stride != 1 or channels_in != channels:
            self.down = nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.down is None else self.down(x)
        return self.relu(out)


class Residual(nn.Module):
    """A ResNet with a strided stem, overlapping max pooling, projected and plain shortcuts, a re-used ReLU and `+=`."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5, 2, 2, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.relu = make_relu()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(_Residual(6, 6, 1, make_relu), _Residual(6, 6, 1, make_relu))
        self.layer2 = nn.Sequential(_Residual(6, 8, 2, make_relu), _Residual(8, 8, 1, make_relu))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.maxpool(self.relu(self.bn1(self.conv1(x))))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Dense(nn.Module):
    """A DenseNet: batch norm and ReLU ahead of each convolution, concatenation, average-pooling transition."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norms, self.convs, self.relus = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for index in range(3):
            self.norms.append(nn.BatchNorm2d(6 + 4 * index))
            self.convs.append(nn.Conv2d(6 + 4 * index, 4, 3, padding=1, bias=index == 1))
            self.relus.append(make_relu())
        self.transition = nn.Sequential(
            nn.BatchNorm2d(18), make_relu(), nn.Conv2d(18, 9, 1, bias=False), nn.AvgPool2d(2)
        )
        self.final = nn.BatchNorm2d(9)
        self.relu = make_relu()
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv, relu in zip(self.norms, self.convs, self.relus, strict=True):
            x = torch.cat([x, conv(relu(norm(x)))], 1)
        return self.fc(self.relu(self.final(self.transition(x))).mean((2, 3)))


class Depthwise(nn.Module):
    """Grouped, dilated and depthwise convolutions, dropout, permute, a batch norm on dense features."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), make_relu(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8), make_relu(), nn.Conv2d(8, 12, 1, groups=2), make_relu(),
            nn.Conv2d(12, 12, 3, padding="same", dilation=2, groups=3), nn.BatchNorm2d(12), make_relu(), nn.Dropout(0.2), nn.AvgPool2d(2),
        )  # fmt: skip
        self.dense = nn.Linear(12 * 9, 16)
        self.norm = nn.BatchNorm1d(16)
        self.relu = make_relu()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1)
        return self.head(self.relu(self.norm(self.dense(x))))


class Functional(nn.Module):
    """Functional calls, an in-place ReLU whose result is ignored, a split and a gate."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x.relu_()
        a, b = x.chunk(2, 1)
        b = F.relu(self.conv2(b), inplace=True)
        x = F.max_pool2d(torch.cat((a, b), dim=1), 2)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


NETWORKS: dict[str, type[nn.Module]] = {"vgg": VGGLike, "residual": Residual, "dense": Dense, "depthwise": Depthwise}


def build(kind: type[nn.Module], make_relu: MakeRelu = nn.ReLU, seed: int = 0) -> nn.Module:
    """A float64 network with weights, biases and batch-norm statistics away from their initial values."""
    torch.manual_seed(seed)
    net = kind(make_relu).double()
    for name, p in net.named_parameters():
        if name.endswith("bias") or p.dim() == 1:
            p.data += 0.1 * torch.randn_like(p)
    for name, b in net.named_buffers():
        if name.endswith("running_mean"):
            b.copy_(0.1 * torch.randn_like(b))
        elif name.endswith("running_var"):
            b.copy_(0.5 + torch.rand_like(b))
    return net.eval()
