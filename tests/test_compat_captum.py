"""lrpkernels.compat.captum gives captum 0.9's numbers where captum runs, on networks, targets and rules."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from captum.attr._utils import lrp_rules as theirs
from captum.attr._utils.custom_modules import Addition_Module
from networks import MakeRelu, build
from peers import CaptumResidual, CaptumVGG
from torch import Tensor, nn

from lrpkernels.compat import captum as ours

X = torch.randn(3, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class Skips(nn.Module):
    """captum's addition module, Tanh, dropout, and a functional flattening."""

    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.norm, self.tanh, self.add, self.drop = nn.BatchNorm2d(4), nn.Tanh(), Addition_Module(), nn.Dropout(0.5)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(2), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tanh(self.a(x))
        return self.fc(self.drop(torch.flatten(self.pool(self.add(x, self.norm(self.b(x)))), 1)))


def pooled() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1), nn.Conv2d(6, 6, 3, groups=2), nn.Tanh(),
        nn.AvgPool2d(2, padding=1, count_include_pad=False), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 2),
    )  # fmt: skip


class Flattened(nn.Module):
    def __init__(self, make_relu: MakeRelu = nn.ReLU) -> None:
        super().__init__()
        self.net, self.fc = pooled(), nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.net(x).flatten(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: build(CaptumVGG),
    "residual": lambda: build(CaptumResidual),
    "skips": lambda: build(Skips),
    "pooled": lambda: build(Flattened),
}
Rules = Callable[[Any], dict[type[nn.Module], Any]]  # of a package's rule classes
RULES: dict[str, Rules] = {
    "default": lambda r: {},
    "epsilon": lambda r: {nn.Conv2d: lambda: r.EpsilonRule(0.3), nn.Linear: lambda: r.EpsilonRule(1e-2)},
    "gamma": lambda r: {nn.Conv2d: lambda: r.GammaRule(), nn.Linear: lambda: r.GammaRule(0.5, set_bias_to_zero=True)},
    "alpha1 beta0": lambda r: {nn.Conv2d: lambda: r.Alpha1_Beta0_Rule(), nn.Linear: lambda: r.EpsilonRule()},
    "no biases": lambda r: {nn.Conv2d: lambda: r.Alpha1_Beta0_Rule(True), nn.Linear: lambda: r.GammaRule(0.1, True)},
    "identity": lambda r: {nn.BatchNorm2d: lambda: r.IdentityRule(), nn.Conv2d: lambda: r.GammaRule()},
    "norms": lambda r: {nn.BatchNorm2d: lambda: r.GammaRule(0.5), nn.MaxPool2d: lambda: r.EpsilonRule(0.1)},
    "norms' positive weights": lambda r: {nn.BatchNorm2d: lambda: r.Alpha1_Beta0_Rule(set_bias_to_zero=True)},
    "pools and sums": lambda r: {
        nn.AvgPool2d: lambda: r.EpsilonRule(0.1), nn.AdaptiveAvgPool2d: lambda: r.GammaRule(), Addition_Module: lambda: r.EpsilonRule(0.2),
    },
    "activations": lambda r: {nn.Tanh: lambda: r.EpsilonRule(0.05), nn.Linear: lambda: r.GammaRule()},
}  # fmt: skip


def assign(net: nn.Module, rules: dict[type[nn.Module], Any]) -> nn.Module:
    for module in net.modules():
        if type(module) in rules:
            module.rule = rules[type(module)]()
    return net


def by_captum(net: nn.Module, *args: Any, layer: str | None = None, **kwargs: Any) -> Any:
    """captum on a copy, since it removes the rules and writes to statistics."""
    net = copy.deepcopy(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if layer is None:
            return captum.attr.LRP(net).attribute(*args, **kwargs)
        return captum.attr.LayerLRP(net, net.get_submodule(layer)).attribute(*args, **kwargs)


def assert_same(found: Any, expected: Any, tolerance: float = 1e-10) -> None:
    assert type(found) is type(expected)
    if isinstance(found, (tuple, list)):
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b, tolerance)
        return
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert float((found - expected).detach().abs().max()) <= tolerance * max(float(expected.abs().max()), 1e-3)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rules", RULES)
def test_the_same_numbers(network: str, rules: str) -> None:
    net = assign(NETWORKS[network](), RULES[rules](theirs))
    expected = by_captum(net, X.clone(), target=2, return_convergence_delta=True)
    found = ours.LRP(net).attribute(X, target=2, return_convergence_delta=True)
    assert_same(found, expected)
    assert float(found[0].abs().max()) > 1e-6
    other = assign(NETWORKS[network](), RULES[rules](ours))  # without captum's classes
    assert_same(ours.LRP(other).attribute(X, target=2), found[0], 0)
    assert_same(ours.LRP(net).attribute(X, target=2), found[0], 0)  # rules stay, unlike captum's


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rules", RULES)
def test_the_same_numbers_in_float32(network: str, rules: str) -> None:
    """Up to 1e-5, or what captum itself is off by: small denominators amplify rounding in both."""
    net = assign(NETWORKS[network](), RULES[rules](theirs))
    exact = ours.LRP(net).attribute(X, target=1)
    scale = float(exact.abs().max())
    found = ours.LRP(net.float()).attribute(X.float(), target=1)
    expected = by_captum(net, X.float(), target=1).detach()
    off = float((expected - exact).abs().max())
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) <= max(1e-5 * scale, 3 * off)
    assert float((found - expected).abs().max()) <= max(1e-5 * scale, 4 * off)


class Branches(nn.Module):
    """Two branches, the second one maybe the input itself, and captum's addition module."""

    def __init__(self, first: nn.Module, second: nn.Module | None) -> None:
        super().__init__()
        self.first, self.second, self.add = first, second, Addition_Module()

    def forward(self, x: Tensor) -> Tensor:
        return self.add(self.first(x), x if self.second is None else self.second(x))


def random_network(draw: random.Random) -> nn.Module:
    """Layers that captum has rules for, some with a rule of their own; it is wrong where an activation follows another."""
    channels, layers = 3, list[nn.Module]()

    def conv(out: int, size: int = 3, stride: int = 1) -> nn.Module:
        return nn.Conv2d(channels, out, size, stride, size // 2, bias=draw.random() < 0.7)

    for _ in range(draw.randint(2, 6)):
        kind = draw.choice(["conv", "norm", "activation", "max", "average", "shortcut", "branches"])
        if kind in ("conv", "norm", "branches"):
            out = draw.choice([2, 4])
            if kind == "branches":
                layers.append(Branches(nn.Sequential(conv(out), nn.BatchNorm2d(out)), conv(out, 1)))
            else:
                layers += [
                    conv(out, draw.choice([1, 3]), draw.choice([1, 2])),
                    *[nn.BatchNorm2d(out)] * (kind == "norm"),
                ]
            channels = out
        elif kind == "shortcut":
            layers.append(Branches(nn.Sequential(conv(channels), nn.ReLU(), conv(channels)), None))
        elif kind == "activation" and layers and not isinstance(layers[-1], (nn.ReLU, nn.Tanh, nn.Dropout)):
            layers.append(draw.choice([nn.ReLU(inplace=True), nn.ReLU(), nn.Tanh(), nn.Dropout()]))
        elif kind == "max":
            layers.append(nn.MaxPool2d(2, 1))
        elif kind == "average":
            layers.append(nn.AvgPool2d(2, 1, ceil_mode=draw.random() < 0.5))
    net = build(lambda _: nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), conv(3, 1)))  # type: ignore[arg-type, return-value]
    made = [theirs.EpsilonRule, lambda: theirs.EpsilonRule(0.1), theirs.GammaRule, lambda: theirs.GammaRule(0.5, True),
            theirs.Alpha1_Beta0_Rule, lambda: theirs.Alpha1_Beta0_Rule(True)]  # fmt: skip
    for module in net.modules():
        is_layer = next(module.children(), None) is None and not isinstance(module, (nn.ReLU, nn.Tanh, nn.Dropout))
        if is_layer and draw.random() < 0.5:
            module.rule = draw.choice([*made, *[theirs.IdentityRule] * isinstance(module, nn.BatchNorm2d)])()
    return net


@pytest.mark.parametrize("seed", range(40))
def test_random_networks(seed: int) -> None:
    draw = random.Random(seed)
    net = random_network(draw)
    x = X[:2, :, :9, :9] if seed % 2 else X[:2, :, :9, :9].abs()
    target = (draw.randrange(3), 0, 0)
    expected = by_captum(net, x.clone(), target=target, return_convergence_delta=True)
    # Random weights make sums near zero, which amplify rounding.
    assert_same(ours.LRP(net).attribute(x, target, return_convergence_delta=True), expected, 1e-7)
