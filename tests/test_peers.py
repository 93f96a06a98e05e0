"""The same heatmaps as zennit 0.5 and captum 0.9, in float64, where they follow the field's definitions (docs/rules.md lists where not)."""

from __future__ import annotations

import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import VGGLike, build
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-4
TINY = 1e-6


def _import_zennit() -> Any:
    """zennit imports torchvision's ResNet and VGG classes for its canonizers; where torchvision is missing, empty ones will do."""
    try:
        import torchvision  # noqa: F401
    except Exception:
        for name in ("torchvision", "torchvision.models", "torchvision.models.resnet", "torchvision.models.vgg"):
            sys.modules.setdefault(name, types.ModuleType(name))
        for name in ("Bottleneck", "BasicBlock"):
            setattr(sys.modules["torchvision.models.resnet"], name, type(name, (nn.Module,), {}))
    import zennit.attribution
    import zennit.canonizers
    import zennit.composites
    import zennit.layer
    import zennit.rules

    return zennit


zennit = _import_zennit()


class ResidualNet(nn.Module):
    """A residual network in zennit's convention: the sum is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.branch = nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1))
        self.sum, self.relu = zennit.layer.Sum(), nn.ReLU()
        self.pool, self.flatten, self.fc = nn.AvgPool2d(2), nn.Flatten(), nn.Linear(54, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.relu(self.sum(torch.stack([self.branch(x), x], dim=-1)))
        return self.fc(self.flatten(self.pool(x)))


class DenseNet(nn.Module):
    """Concatenations between convolutions (no batch norm: zennit cannot merge it here)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.ra = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.b, self.rb = nn.Conv2d(4, 3, 3, padding=1), nn.ReLU()
        self.c, self.rc = nn.Conv2d(7, 5, 3, padding=1), nn.ReLU()
        self.pool, self.flatten, self.fc = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(180, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ra(self.a(x))
        x = torch.cat([x, self.rb(self.b(x))], 1)
        return self.fc(self.flatten(self.pool(self.rc(self.c(x)))))


def _batch_norm_net(_: Any = None) -> nn.Module:
    return nn.Sequential(
        # zennit merges a batch norm and leaves its eps behind (outputs shrink by eps / 2): as good as none here.
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6, eps=1e-14), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False),
        nn.BatchNorm2d(4, eps=1e-14), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(100, 5),
    )  # fmt: skip


NETWORKS: dict[str, Any] = {"vgg": VGGLike, "residual": ResidualNet, "dense": DenseNet, "batch norm": _batch_norm_net}


def _network(name: str) -> nn.Module:
    return build(lambda _: NETWORKS[name]())  # type: ignore[arg-type]


X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def _zennit_heatmap(net: nn.Module, composite: Any, target: int) -> Tensor:
    with composite.context(net) as modified:
        x = X.clone().requires_grad_()
        logits = modified(x)
        seed = torch.zeros_like(logits)
        seed[:, target] = logits[:, target].detach()
        (relevance,) = torch.autograd.grad(logits, x, seed)
    return relevance


def _canonizers() -> list[Any]:
    return [zennit.canonizers.SequentialMergeBatchNorm()]


def _same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    assert float(theirs.abs().max()) > 0
    assert float((ours - theirs).abs().max()) <= tolerance * float(theirs.abs().max())


def _zennit_map(layers: Any) -> Any:
    """Rules per layer type beside zennit's base map: activations pass, sums and averages are normalised."""
    base = zennit.composites.layer_map_base(TINY)
    return zennit.composites.LayerMapComposite(base + layers, canonizers=_canonizers())


_conv, _linear = zennit.types.Convolution, nn.Linear
_kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._BatchNorm)


def _ours(convolution: lrp.Rule, dense: lrp.Rule, first: lrp.Rule | None = None) -> lrp.Composite:
    layers: dict[Any, lrp.Rule] = {_kinds[0]: convolution, _kinds[1]: dense, _kinds[2]: convolution}
    return lrp.Composite(layers, first=first, default=lrp.Norm(TINY))


RULES: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "epsilon": (lrp.EpsilonLayerwise(EPS), lambda: zennit.rules.Epsilon(EPS)),
    "z+": (lrp.ZPlus(EPS), lambda: zennit.rules.ZPlus(EPS)),
    "alpha2 beta1": (lrp.AlphaBeta(2, 1, EPS), lambda: zennit.rules.AlphaBeta(2, 1, EPS)),
    "gamma": (lrp.Gamma(0.25, EPS), lambda: zennit.rules.Gamma(0.25, EPS)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_zennit(rule: str, network: str) -> None:
    net = _network(network)
    ours, theirs = RULES[rule]
    dense = lrp.EpsilonLayerwise(TINY)
    with torch.no_grad():
        heatmap = lrp.LRP(net, _ours(ours, dense))(X, 3)[1]
    layers = [(_conv, theirs()), (_linear, zennit.rules.Epsilon(TINY))]
    _same(heatmap, _zennit_heatmap(net, _zennit_map(layers), 3))


FIRST: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "box": (
        lrp.ZBox(-0.5, 1.5, EPS, bias=False),
        lambda: zennit.rules.ZBox(torch.full_like(X, -0.5), torch.full_like(X, 1.5), EPS),
    ),
    "flat": (lrp.Flat(EPS), lambda: zennit.rules.Flat(EPS)),
    "w^2": (lrp.WSquare(EPS), lambda: zennit.rules.WSquare(EPS)),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", FIRST)
def test_first_layer_rules_equal_zennit(rule: str, network: str) -> None:
    net = _network(network)
    ours, theirs = FIRST[rule]
    with torch.no_grad():
        heatmap = lrp.LRP(net, _ours(lrp.ZPlus(EPS), lrp.EpsilonLayerwise(TINY), first=ours))(X, 0)[1]
    base = zennit.composites.layer_map_base(TINY)
    composite = zennit.composites.SpecialFirstLayerMapComposite(
        [*base, (_conv, zennit.rules.ZPlus(EPS)), (_linear, zennit.rules.Epsilon(TINY))],
        [(_conv, theirs())],
        canonizers=_canonizers(),
    )
    _same(heatmap, _zennit_heatmap(net, composite, 0))


PRESETS: dict[str, tuple[lrp.Composite, Callable[[], Any]]] = {
    "EpsilonPlus": (lrp.EpsilonPlus(), lambda: zennit.composites.EpsilonPlus(canonizers=_canonizers())),
    "EpsilonPlusFlat": (lrp.EpsilonPlusFlat(), lambda: zennit.composites.EpsilonPlusFlat(canonizers=_canonizers())),
    "EpsilonAlpha2Beta1": (
        lrp.EpsilonAlpha2Beta1(),
        lambda: zennit.composites.EpsilonAlpha2Beta1(canonizers=_canonizers()),
    ),
    "EpsilonGammaBox": (
        lrp.EpsilonGammaBox(-0.5, 1.5),
        lambda: zennit.composites.EpsilonGammaBox(
            torch.full_like(X, -0.5), torch.full_like(X, 1.5), canonizers=_canonizers()
        ),
    ),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_equal_zennit(preset: str, network: str) -> None:
    net = _network(network)
    ours, theirs = PRESETS[preset]
    with torch.no_grad():
        heatmap = lrp.LRP(net, ours)(X, 2)[1]
    _same(heatmap, _zennit_heatmap(net, theirs(), 2), 1e-8)


def test_zennit_doubles_relevance_at_a_plain_sum_and_we_do_not() -> None:
    class Plain(ResidualNet):
        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return self.fc(self.flatten(self.pool(self.relu(self.branch(x) + x))))

    for module in (net := build(lambda _: Plain())).modules():  # type: ignore[arg-type]
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    with torch.no_grad():
        logits, ours = lrp.LRP(net, lrp.EpsilonLayerwise(1e-12))(X, 1)
    torch.testing.assert_close(ours.sum((1, 2, 3)), logits[:, 1])
    theirs = _zennit_heatmap(net, zennit.composites.EpsilonPlus(epsilon=1e-12, stabilizer=1e-12), 1)
    assert float((theirs.sum((1, 2, 3)) / logits[:, 1] - 1).abs().min()) > 0.1


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "alpha1 beta0"])
def test_captum_agrees_where_it_is_right(rule: str) -> None:
    """A VGG-like network without biases: captum's gamma and alpha-beta treat biases in ways of their own."""
    from captum.attr import LRP as CaptumLRP
    from captum.attr._utils import lrp_rules

    class Plain(nn.Module):  # captum 0.9 knows no nn.Flatten
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(
                nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU()
            )  # fmt: skip
            self.fc = nn.Linear(64, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.flatten(self.features(x), 1))

    net = build(lambda _: Plain())  # type: ignore[arg-type]
    for module in net.modules():
        if getattr(module, "bias", None) is not None:
            module.bias.data.zero_()
    eps = 1e-9
    ours, theirs = {
        "epsilon": (lrp.EpsilonLayerwise(eps, pools=False), lambda: lrp_rules.EpsilonRule(eps)),
        "gamma": (lrp.Gamma(0.25, eps), lambda: lrp_rules.GammaRule(gamma=0.25)),
        "alpha1 beta0": (lrp.ZPlus(eps), lambda: lrp_rules.Alpha1_Beta0_Rule()),
    }[rule]
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            # captum's gamma and alpha-beta rules are stated for non-negative inputs and outputs: convolutions behind ReLUs.
            module.rule = theirs() if isinstance(module, nn.Conv2d) else lrp_rules.EpsilonRule(eps)  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = CaptumLRP(net).attribute(X.clone(), target=3)
    composite = lrp.Composite({nn.Conv2d: ours, nn.Linear: lrp.EpsilonLayerwise(eps)}, default=lrp.Norm(1e-12))
    with torch.no_grad():
        heatmap = lrp.LRP(net, composite)(X, 3)[1]
    _same(heatmap, expected.detach(), 1e-5)
