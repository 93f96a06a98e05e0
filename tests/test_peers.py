"""The same heatmaps as zennit 0.5 and captum 0.9, in float64, where they follow the field's definitions (docs/rules.md lists where not)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from captum.attr._utils import lrp_rules
from networks import Dense, Residual, VGGLike, build
from peers import (
    CaptumResidual,
    CaptumVGG,
    ZennitDense,
    ZennitResidual,
    captum_heatmap,
    pair,
    without_biases,
    zennit,
    zennit_heatmap,
)
from torch import Tensor, nn

import lrpkernels as lrp

EPS = 1e-3  # large enough for a stabilizer in the wrong place to show
TINY = 1e-6
LOW, HIGH = -0.5, 1.5
X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
LOWS, HIGHS = torch.full_like(X, LOW), torch.full_like(X, HIGH)

# Ours as it is, zennit's variant of it. zennit merges a batch norm but leaves its eps behind, so that outputs shrink: none here.
NETWORKS: dict[str, tuple[type[nn.Module], type[nn.Module]]] = {
    "vgg": (VGGLike, VGGLike),
    "residual": (Residual, ZennitResidual),
    "dense": (Dense, ZennitDense),
}


def _same(ours: Tensor, theirs: Tensor, tolerance: float = 1e-9) -> None:
    scale = float(theirs.abs().max())
    assert scale > 1e-8
    assert float((ours - theirs).abs().max()) <= tolerance * scale


def _canonizers(network: str) -> list[Any]:
    """Batch norms behind convolutions are merged; those of a DenseNet stand alone."""
    return [] if network == "dense" else [zennit.canonizers.SequentialMergeBatchNorm()]


def _zennit_composite(network: str, convolution: Any, first: Any = None) -> Any:
    """One rule for convolutions beside zennit's base map, in which a batch norm alone would be passed over: epsilon instead."""
    layers = [
        (zennit.types.BatchNorm, zennit.rules.Pass() if _canonizers(network) else zennit.rules.Epsilon(EPS)),
        *zennit.composites.layer_map_base(TINY),
        (zennit.types.Convolution, convolution),
        (nn.Linear, zennit.rules.Epsilon(EPS)),
    ]
    first_map = [] if first is None else [(zennit.types.Convolution, first)]
    return zennit.composites.SpecialFirstLayerMapComposite(layers, first_map, canonizers=_canonizers(network))


def _composite(convolution: lrp.Rule, first: lrp.Rule | None = None) -> lrp.Composite:
    epsilon = lrp.EpsilonLayerwise(EPS)
    layers: dict[Any, lrp.Rule] = {nn.Conv2d: convolution, nn.BatchNorm2d: epsilon, nn.Linear: epsilon}
    return lrp.Composite(layers, first=first, default=lrp.Norm(TINY))


def _heatmap(net: nn.Module, composite: lrp.Composite | lrp.Rule, target: int) -> Tensor:
    with torch.no_grad():
        return lrp.LRP(net, composite)(X, target)[1]


RULES: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "epsilon": (lrp.EpsilonLayerwise(EPS), lambda: zennit.rules.Epsilon(EPS)),
    "epsilon without bias": (lrp.EpsilonLayerwise(EPS, bias=False), lambda: zennit.rules.Epsilon(EPS, "bias")),
    "z+": (lrp.ZPlus(EPS), lambda: zennit.rules.ZPlus(EPS)),
    "z+ without bias": (lrp.ZPlus(EPS, bias=False), lambda: zennit.rules.ZPlus(EPS, "bias")),
    "alpha 2 beta 1": (lrp.AlphaBeta(2, 1, EPS), lambda: zennit.rules.AlphaBeta(2, 1, EPS)),
    "gamma": (lrp.Gamma(0.25, EPS), lambda: zennit.rules.Gamma(0.25, EPS)),
    "gamma without bias": (lrp.Gamma(0.25, EPS, bias=False), lambda: zennit.rules.Gamma(0.25, EPS, "bias")),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", RULES)
def test_rules_equal_zennit(rule: str, network: str) -> None:
    net, variant = pair(*NETWORKS[network], norm_eps=1e-15)
    ours, theirs = RULES[rule]
    expected = zennit_heatmap(variant, _zennit_composite(network, theirs()), X, 3)
    _same(_heatmap(net, _composite(ours), 3), expected)


FIRST: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "box": (lrp.ZBox(LOW, HIGH, EPS, bias=False), lambda: zennit.rules.ZBox(LOWS, HIGHS, EPS)),
    "flat": (lrp.Flat(EPS), lambda: zennit.rules.Flat(EPS)),
    "w^2": (lrp.WSquare(EPS), lambda: zennit.rules.WSquare(EPS)),
    "w^2 without bias": (lrp.WSquare(EPS, bias=False), lambda: zennit.rules.WSquare(EPS, "bias")),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("rule", FIRST)
def test_first_layer_rules_equal_zennit(rule: str, network: str) -> None:
    net, variant = pair(*NETWORKS[network], norm_eps=1e-15)
    ours, theirs = FIRST[rule]
    expected = zennit_heatmap(variant, _zennit_composite(network, zennit.rules.ZPlus(EPS), theirs()), X, 0)
    _same(_heatmap(net, _composite(lrp.ZPlus(EPS), ours), 0), expected)


PRESETS: dict[str, tuple[lrp.Composite, Callable[..., Any]]] = {
    "EpsilonPlus": (lrp.EpsilonPlus(EPS), zennit.composites.EpsilonPlus),
    "EpsilonPlusFlat": (lrp.EpsilonPlusFlat(EPS), zennit.composites.EpsilonPlusFlat),
    "EpsilonAlpha2Beta1": (lrp.EpsilonAlpha2Beta1(EPS), zennit.composites.EpsilonAlpha2Beta1),
    "EpsilonAlpha2Beta1Flat": (lrp.EpsilonAlpha2Beta1Flat(EPS), zennit.composites.EpsilonAlpha2Beta1Flat),
    "ExcitationBackprop": (
        lrp.ExcitationBackprop(EPS),
        lambda epsilon, canonizers: zennit.composites.ExcitationBackprop(epsilon, canonizers=canonizers),
    ),
    "EpsilonGammaBox": (
        lrp.EpsilonGammaBox(LOW, HIGH, EPS),
        lambda **options: zennit.composites.EpsilonGammaBox(LOWS, HIGHS, **options),
    ),
}


# zennit's presets pass batch norms over that are not merged, so DenseNets differ by definition.
@pytest.mark.parametrize("network", ["vgg", "residual"])
@pytest.mark.parametrize("preset", PRESETS)
def test_presets_equal_zennit(preset: str, network: str) -> None:
    net, variant = pair(*NETWORKS[network], norm_eps=1e-15)
    ours, theirs = PRESETS[preset]
    expected = zennit_heatmap(variant, theirs(epsilon=EPS, canonizers=_canonizers(network)), X, 2)
    _same(_heatmap(net, ours, 2), expected)


MODIFIED_GRADIENTS: dict[str, tuple[lrp.Composite, Callable[..., Any]]] = {
    "DeconvNet": (lrp.DeconvNet(), zennit.composites.DeconvNet),
    "GuidedBackprop": (lrp.GuidedBackprop(), zennit.composites.GuidedBackprop),
    "BetaSmooth": (lrp.BetaSmooth(2.0), lambda: zennit.composites.BetaSmooth(2.0)),
}


@pytest.mark.parametrize("network", ["vgg", "residual", "dense"])
@pytest.mark.parametrize("name", MODIFIED_GRADIENTS)
def test_modified_gradients_equal_zennit(name: str, network: str) -> None:
    net, variant = pair(*NETWORKS[network])
    ours, theirs = MODIFIED_GRADIENTS[name]
    with theirs().context(variant) as modified:
        x = X.clone().requires_grad_()
        (expected,) = torch.autograd.grad(modified(x)[:, 2].sum(), x)
    _same(_heatmap(net, ours, 2), expected)
    checkpointed = lrp.LRP(net, ours, checkpoint=True, static=True)
    for _ in range(2):
        _same(checkpointed(X, 2)[1].detach(), expected)


HIDDEN: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "flat": (lrp.Flat(EPS), lambda: zennit.rules.Flat(EPS)),
    "w^2": (lrp.WSquare(EPS), lambda: zennit.rules.WSquare(EPS)),
    # Bounds of what the layer reads; zennit's tensors have its shape.
    "box": (lrp.ZBox(-1.0, 4.0, EPS, bias=False), lambda: _Box()),
}


class _Box:
    """zennit's box rule needs bounds of the layer's shape: made when the layer is known."""

    def for_shape(self, shape: torch.Size) -> Any:
        low, high = torch.full(shape, -1.0, dtype=X.dtype), torch.full(shape, 4.0, dtype=X.dtype)
        return zennit.rules.ZBox(low, high, EPS)


# Layers by name: in the middle, behind pooling, dense, two in a row, and a residual branch.
PLACES = {"vgg": [("features.2",), ("features.5",), ("classifier.1",), ("features.2", "features.5")],
          "residual": [("layer1.1.conv1",), ("layer1.0.conv2",), ("layer2.0.conv1", "fc")]}  # fmt: skip


KEEPS_SHAPE = [("vgg", ("features.5",)), ("residual", ("layer1.1.conv1",)), ("residual", ("layer1.0.conv2",))]


@pytest.mark.parametrize(
    ("network", "names", "rule"),
    [(network, names, rule) for network, places in PLACES.items() for names in places for rule in HIDDEN]
    + [(network, names, "pass") for network, names in KEEPS_SHAPE],
)
@pytest.mark.parametrize("others", ["epsilon", "z+", "alpha 2 beta 1", "gamma"])
def test_rules_in_hidden_layers_equal_zennit(others: str, rule: str, network: str, names: tuple[str, ...]) -> None:
    net, variant = pair(*NETWORKS[network], norm_eps=1e-15)
    ours, theirs = {**HIDDEN, "pass": (lrp.Pass(), lambda: zennit.rules.Pass())}[rule]
    shapes = _input_shapes(net, names)
    made = {name: theirs() for name in names}
    name_map = [((name,), r.for_shape(shapes[name]) if isinstance(r, _Box) else r) for name, r in made.items()]
    convolution, theirs_convolution = RULES[others]
    base = _zennit_composite(network, theirs_convolution())
    named = zennit.composites.NameMapComposite(name_map)
    expected = zennit_heatmap(variant, zennit.composites.MixedComposite([named, base]), X, 3)
    composite = _composite(convolution)
    composite = lrp.Composite({**composite.layers, **dict.fromkeys(names, ours)}, default=composite.default)
    _same(_heatmap(net, composite, 3), expected)


def _input_shapes(net: nn.Module, names: tuple[str, ...]) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}
    modules = dict(net.named_modules())
    hooks = [
        modules[name].register_forward_pre_hook(lambda m, args, name=name: shapes.update({name: args[0].shape}))
        for name in names
    ]
    net(X)
    for hook in hooks:
        hook.remove()
    return shapes


def test_a_batch_norm_named_for_a_rule_of_its_own_equals_zennit_without_merging() -> None:
    """zennit's way without a canonizer: convolution and batch norm each follow their rule."""
    net, variant = pair(Residual, ZennitResidual, norm_eps=1e-15)
    for name, ours, theirs in (
        ("bn1", lrp.Pass(), zennit.rules.Pass()),
        ("layer1.1.bn2", lrp.Pass(), zennit.rules.Pass()),
        ("layer2.0.bn1", lrp.EpsilonLayerwise(0.1), zennit.rules.Epsilon(0.1)),
    ):
        others = [n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) and n != name]
        # The others are passed over by both, which makes each of them a layer of its own here.
        named = zennit.composites.NameMapComposite([((name,), theirs), (tuple(others), zennit.rules.Pass())])
        layers = [
            *zennit.composites.layer_map_base(TINY),
            (zennit.types.Convolution, zennit.rules.ZPlus(EPS)),
            (nn.Linear, zennit.rules.Epsilon(EPS)),
        ]
        expected = zennit_heatmap(
            variant, zennit.composites.MixedComposite([named, zennit.composites.LayerMapComposite(layers)]), X, 1
        )
        composite = _composite(lrp.ZPlus(EPS))
        rules: dict[Any, lrp.Rule] = {**composite.layers, **dict.fromkeys(others, lrp.Pass()), name: ours}
        _same(_heatmap(net, lrp.Composite(rules, default=composite.default), 1), expected)


def test_a_sum_over_a_stack_follows_the_rule_of_sums() -> None:
    net, variant = pair(Residual, ZennitResidual)
    for rule in (lrp.EpsilonLayerwise(EPS), lrp.ZPlus(EPS)):
        _same(_heatmap(variant, rule, 1), _heatmap(net, rule, 1))


def test_zennit_doubles_relevance_at_a_plain_sum_and_we_do_not() -> None:
    net = without_biases(build(Residual))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.zero_()  # type: ignore[union-attr]
    logits = net(X)[:, 1].detach()
    ours = _heatmap(net, lrp.EpsilonLayerwise(1e-12), 1)
    torch.testing.assert_close(ours.sum((1, 2, 3)), logits)
    composite = zennit.composites.EpsilonPlus(1e-12, 1e-12, canonizers=_canonizers("residual"))
    theirs = zennit_heatmap(net, composite, X, 1)
    assert float((theirs.sum((1, 2, 3)) / logits).min()) > 2


# captum has epsilon 1e-9 at pools and leaves gamma and alpha1-beta0 that one, too; their biases are set to zero here, because it
# takes b for b + gamma b+ and for b+.
CAPTUM: dict[str, tuple[lrp.Rule, Callable[[], Any]]] = {
    "epsilon": (lrp.EpsilonLayerwise(EPS), lambda: lrp_rules.EpsilonRule(EPS)),
    "gamma": (lrp.Gamma(0.25, 1e-9, bias=False), lambda: lrp_rules.GammaRule(0.25, set_bias_to_zero=True)),
    "alpha 1 beta 0": (lrp.ZPlus(1e-9, bias=False), lambda: lrp_rules.Alpha1_Beta0_Rule(set_bias_to_zero=True)),
}


@pytest.mark.parametrize("rule", CAPTUM)
def test_rules_equal_captum(rule: str) -> None:
    net, variant = pair(CaptumVGG, CaptumVGG)
    ours, theirs = CAPTUM[rule]
    epsilon = lrp.EpsilonLayerwise(EPS)
    rules = {nn.Conv2d: theirs, nn.Linear: lambda: lrp_rules.EpsilonRule(EPS)}
    composite = lrp.Composite({nn.Conv2d: ours, nn.Linear: epsilon}, default=lrp.EpsilonLayerwise(1e-9))
    _same(_heatmap(net, composite, 3), captum_heatmap(variant, rules, X, 3))


def test_epsilon_equals_captum_on_a_residual_network_with_its_sums() -> None:
    """captum stabilizes convolution and batch norm each, we their merged layer: the same up to that 1e-9 near z = 0."""
    net, variant = pair(Residual, CaptumResidual)
    _same(_heatmap(net, lrp.EpsilonLayerwise(1e-9), 3), captum_heatmap(variant, {}, X, 3), tolerance=1e-6)


def test_captum_loses_relevance_at_a_concatenation_and_we_do_not() -> None:
    class Concatenation(nn.Module):
        def __init__(self, make_relu: Callable[[], nn.Module]) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 3, 3, padding=1), nn.Linear(700, 5)
            self.relu_a, self.relu_b = make_relu(), make_relu()

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu_a(self.a(x))
            return self.fc(torch.cat([x, self.relu_b(self.b(x))], 1).flatten(1))

    net = without_biases(build(Concatenation))
    logits = net(X)[:, 3].detach()
    ours = _heatmap(net, lrp.EpsilonLayerwise(1e-12), 3)
    torch.testing.assert_close(ours.sum((1, 2, 3)), logits)
    theirs = captum_heatmap(net, {}, X, 3)
    assert float((theirs.sum((1, 2, 3)) / logits - 1).abs().min()) > 0.05
