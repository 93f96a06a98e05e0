"""Heatmaps by zennit and captum, and the test networks rewritten to their conventions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from networks import Dense, MakeRelu, Residual, VGGLike, _Residual, build
from torch import Tensor, nn

from benchmarks.zennit_import import import_zennit

zennit = import_zennit()


class _ZennitBlock(_Residual):
    """The sum as a module, at which zennit would double relevance, and a ReLU for each call, of which it keeps the last."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.total = zennit.layer.Sum()
        self.last = args[3]()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.last(self.total(torch.stack([out, x if self.down is None else self.down(x)], dim=-1)))


class ZennitResidual(Residual):
    """:class:`networks.Residual` with zennit's sums."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__(make_relu)
        self.layer1 = nn.Sequential(_ZennitBlock(6, 6, 1, make_relu), _ZennitBlock(6, 6, 1, make_relu))
        self.layer2 = nn.Sequential(_ZennitBlock(6, 8, 2, make_relu), _ZennitBlock(8, 8, 1, make_relu))


class ZennitDense(Dense):
    """:class:`networks.Dense` with its mean over positions as a pooling module, which zennit sees."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__(make_relu)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv, relu in zip(self.norms, self.convs, self.relus, strict=True):
            x = torch.cat([x, conv(relu(norm(x)))], 1)
        return self.fc(torch.flatten(self.pool(self.relu(self.final(self.transition(x)))), 1))


class CaptumVGG(VGGLike):
    """:class:`networks.VGGLike` without nn.Flatten, which captum does not know."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__(make_relu)
        self.classifier[0] = nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class _CaptumBlock(_Residual):
    def __init__(self, *args: Any) -> None:
        from captum.attr._utils.custom_modules import Addition_Module

        super().__init__(*args)
        self.total = Addition_Module()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(self.total(out, x if self.down is None else self.down(x)))


class CaptumResidual(Residual):
    """:class:`networks.Residual` with captum's sums."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__(make_relu)
        self.layer1 = nn.Sequential(_CaptumBlock(6, 6, 1, make_relu), _CaptumBlock(6, 6, 1, make_relu))
        self.layer2 = nn.Sequential(_CaptumBlock(6, 8, 2, make_relu), _CaptumBlock(8, 8, 1, make_relu))


def pair(ours: type[nn.Module], theirs: type[nn.Module], norm_eps: float | None = None) -> tuple[nn.Module, nn.Module]:
    """A network and its peer's variant with the same weights; ``norm_eps`` replaces the eps of all batch norms."""
    net, variant = build(ours), build(theirs)
    variant.load_state_dict(net.state_dict())
    for module in (*net.modules(), *variant.modules()):
        if norm_eps is not None and isinstance(module, nn.BatchNorm2d):
            module.eps = norm_eps
    return net, variant


def without_biases(net: nn.Module) -> nn.Module:
    """The network with all biases at zero."""
    for module in net.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()  # type: ignore[union-attr, operator]
    return net


def zennit_heatmap(net: nn.Module, composite: Any, x: Tensor, target: int) -> Tensor:
    """R at the input by zennit, started from the target's logit."""
    with composite.context(net) as modified:
        x = x.clone().requires_grad_()
        logits = modified(x)
        start = torch.zeros_like(logits)
        start[:, target] = logits[:, target].detach()
        return torch.autograd.grad(logits, x, start)[0]


def captum_heatmap(net: nn.Module, rules: dict[type[nn.Module], Callable[[], Any]], x: Tensor, target: int) -> Tensor:
    """R at the input by captum, with rules by module type beside its defaults (epsilon 1e-9)."""
    from captum.attr import LRP

    for module in net.modules():
        if type(module) in rules:
            module.rule = rules[type(module)]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return LRP(net).attribute(x.clone(), target=target).detach()
