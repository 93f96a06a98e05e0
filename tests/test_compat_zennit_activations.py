"""lrpkernels.compat.zennit and Pass at activations of every kind, against the installed zennit; odd composites."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from peers import zennit
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat import zennit as ours
from lrpkernels.errors import FallbackWarning

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
ONE = torch.eye(4, dtype=torch.float64)[[1, 2]]
ACTIVATIONS = [
    nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU, nn.ELU, nn.SiLU, nn.Sigmoid, nn.Hardswish, nn.Softplus, nn.PReLU, nn.ReLU6, nn.Hardtanh,
]  # fmt: skip


def _net(activation: type[nn.Module]) -> nn.Sequential:
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 4, 3),
        activation(),
        nn.AvgPool2d(2),
        nn.Conv2d(4, 5, 2),
        activation(),
        nn.Flatten(),
        nn.Linear(20, 4),
    ]
    return nn.Sequential(*layers).double().eval()


def _differ(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonAlpha2Beta1Flat"])
def test_activations_pass_relevance_on_exactly(activation: type[nn.Module], name: str) -> None:
    net = _net(activation)
    expected = zennit.attribution.Gradient(net, getattr(zennit.composites, name)())(X, ONE)[1]
    assert _differ(ours.Gradient(net, getattr(ours, name)())(X, ONE)[1], expected) < 1e-10
    converted = ours.convert(getattr(zennit.composites, name)())
    assert _differ(ours.Gradient(net, converted)(X, ONE)[1], expected) < 1e-10


def test_pass_is_exact_where_an_activation_is_far_from_its_input() -> None:
    activation = nn.Softplus()
    x = torch.tensor([[1e-7, -1e-7, 2.0, -3.0]], dtype=torch.float64)  # softplus(1e-7) is 0.69
    with torch.no_grad():
        _, heatmap = lrp.LRP(activation, lrp.Composite(default=lrp.Pass()))(x, target=lambda z: z.sum(1))
    assert _differ(heatmap, activation(x)) < 1e-7


@pytest.mark.parametrize("rule", ["ReLUGuidedBackprop", "ReLUDeconvNet"])
def test_rules_of_relus_at_other_activations_are_registered_as_zennit_does(rule: str) -> None:
    net = _net(nn.LeakyReLU)

    def relevance(module: Any, rules: Any, composites: Any) -> Tensor:
        composite = composites.NameMapComposite([(["1"], getattr(rules, rule)())])
        return module.Gradient(net, composite)(X, ONE)[1]

    expected = relevance(zennit.attribution, zennit.rules, zennit.composites)
    with pytest.warns(FallbackWarning, match="is chosen for LeakyReLU"):
        found = relevance(ours, ours, ours)
    assert _differ(found, expected) < 1e-10


def _odd(rules: Any, composites: Any, core: Any) -> dict[str, Any]:
    class Bare(rules.ZPlus):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(stabilizer=1e-3, zero_params="bias")

    flat = composites.NameMapComposite([(["0"], rules.Flat())])
    inner = composites.MixedComposite([flat, composites.NameMapComposite([(["0", "3"], rules.AlphaBeta(3, 2))])])
    clip, scaled = core.Stabilizer(0.01, clip=True), core.Stabilizer(0.02, norm_scale=True)
    activations = [(nn.Tanh, rules.Pass()), (nn.AvgPool2d, rules.Norm())]
    layers = [*activations, (nn.Conv2d, rules.ZPlus()), (nn.Linear, rules.Epsilon())]
    return {
        "names that do not exist": composites.NameLayerMapComposite([(["x", "y"], rules.Gamma())], layers),
        "the first counts": composites.MixedComposite([flat, composites.EpsilonPlus()]),
        "the last does not": composites.MixedComposite([composites.EpsilonPlus(), flat]),
        "nested": composites.MixedComposite([inner, composites.EpsilonGammaBox(low=-1.0, high=2.0)]),
        "bias": composites.EpsilonPlus(zero_params="bias"),
        "list": composites.EpsilonAlpha2Beta1(zero_params=["bias"]),
        "none": composites.EpsilonPlusFlat(zero_params=[]),
        "subclass": composites.LayerMapComposite([*activations, (nn.Conv2d, Bare()), (nn.Linear, rules.Epsilon(0.1))]),
        "stabilizers": composites.EpsilonPlus(epsilon=clip, stabilizer=scaled),
        "a norm for all": composites.LayerMapComposite([*activations, ((nn.Conv2d, nn.Linear), rules.Norm())]),
        "a tensor": composites.EpsilonGammaBox(low=torch.zeros(1, 3, 1, 1), high=torch.ones(1, 3, 1, 1)),
    }  # fmt: skip


def test_odd_composites_equal_zennits() -> None:
    net = _net(nn.Tanh)
    theirs = _odd(zennit.rules, zennit.composites, zennit.core)
    own = _odd(ours, ours, ours)
    for name, composite in theirs.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            expected = zennit.attribution.Gradient(net, composite)(X, ONE)[1]
            for chosen in (own[name], composite):
                assert _differ(ours.Gradient(net, chosen)(X, ONE)[1], expected) < 1e-9, name


def test_parametrized_layers_are_layers() -> None:
    net = _net(nn.ReLU)
    net[0] = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3).double())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ours.Gradient(net, ours.EpsilonPlus())(X, ONE)[1]
    nn.utils.parametrize.remove_parametrizations(net[0], "weight")
    expected = zennit.attribution.Gradient(net, zennit.composites.EpsilonPlus())(X, ONE)[1]
    assert _differ(found, expected) < 1e-10


def test_numbers_of_steps_and_sizes_are_positive() -> None:
    net = _net(nn.ReLU)
    for make in (ours.SmoothGrad, ours.IntegratedGradients):
        with pytest.raises(ValueError, match="n_iter must be positive, got 0"):
            make(net, n_iter=0)
    for options in ({"window": 0}, {"stride": 0}, {"window": (1, 0)}, {"stride": (2, -1)}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} must be positive"):
            ours.Occlusion(net, **options)
    with pytest.raises(TypeError, match="input: gradients need a floating-point tensor, got ndarray"):
        ours.Gradient(net)(X.numpy())  # type: ignore[arg-type]
