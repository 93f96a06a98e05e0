"""captum's signature: targets, layers, further arguments, deltas, rules of one's own, its tools, and where captum raises or is wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import captum.attr
import captum.metrics
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as theirs
from functions import random
from networks import Functional, Residual, VGGLike, build
from peers import CaptumResidual, CaptumVGG, pair
from test_compat_captum import Skips, X, assert_same, by_captum
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.compat import captum as ours
from lrpkernels.errors import InputWarning


class Several(nn.Module):
    """Outputs [B, 4, 5]."""

    def __init__(self, make_relu: Any = nn.ReLU) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


A = random(3, 6, seed=1)
B3 = random(3, 4, 6, seed=2)
TARGETS: list[Any] = [
    1,
    (1,),
    torch.tensor(1),
    torch.tensor([1]),
    torch.tensor([4, 0, 2]),
    [4, 0, 2],
    [(4,), (0,), (2,)],
    -1,
]
DEEP: list[Any] = [(1, 3), [(1, 3), (0, 0), (3, 4)], [(-1, 3), (0, -2), (3, 4)]]


@pytest.mark.parametrize(("x", "target"), [(A, t) for t in TARGETS] + [(B3, t) for t in DEEP], ids=repr)
def test_targets(x: Tensor, target: Any) -> None:
    net = build(Several)
    expected = by_captum(net, x.clone(), target=target, return_convergence_delta=True)
    found = ours.LRP(net).attribute(x, target, return_convergence_delta=True)
    assert_same(found, expected)
    if isinstance(target, Tensor):
        assert_same(ours.LRP(net).attribute(x, target.numpy()), found[0], 0)
    if isinstance(target, int) and target >= 0:
        assert_same(ours.LRP(net).attribute(x, np.int64(target)), found[0], 0)


WRONG: list[tuple[Any, type[Exception], str]] = [
    (None, AssertionError, "has 5 numbers per example"),
    (5, IndexError, "index 5 is out of range, dimension 1"),
    ((1, 2), AssertionError, "2 indices for an output of shape"),
    ([1, 2], AssertionError, "a list has one target per example, got 2"),
    ([], AssertionError, "a list has one target per example, got 0"),
    ([1, 2, "a"], TypeError, "a list holds ints or tuples of ints, got str"),
    ([(1,), 2, (1, 2)], AssertionError, "the same number of indices"),
    (torch.tensor([1.0, 2.0, 0.0]), TypeError, "must hold integers"),
    (torch.zeros(3, 2, dtype=torch.int64), AssertionError, "one index, or one per example"),
    (torch.tensor([1, 2]), AssertionError, "got 2 for an output"),
    (True, TypeError, "got bool"),
    (1.0, TypeError, "got float"),
]


@pytest.mark.parametrize(("target", "error", "text"), WRONG, ids=lambda v: repr(v)[:20])
def test_wrong_targets(target: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text) as caught:
        ours.LRP(build(Several)).attribute(A, target)
    assert "\n" not in str(caught.value)


PLACES = {
    CaptumVGG: ["features.0", "features.2", "classifier.1", "features.4"],
    CaptumResidual: ["conv1", "bn1", "layer1.0.conv2", "layer1.0.bn2", "layer1.0.total", "fc", "layer2.0.conv1"],
    Skips: ["a", "b", "norm", "add", "pool"],
}


@pytest.mark.parametrize("at_input", [False, True])
@pytest.mark.parametrize(("network", "layer"), [(n, place) for n, places in PLACES.items() for place in places])
def test_layers(network: type[nn.Module], layer: str, at_input: bool) -> None:
    net = build(network)
    if not hasattr(net.get_submodule(layer), "forward") or isinstance(net.get_submodule(layer), nn.ReLU):
        pytest.skip("captum has no relevance at activations")
    if network is CaptumVGG:
        net.features[0].rule = theirs.GammaRule()  # type: ignore[index, union-attr]
    options: Any = {"target": 2, "attribute_to_layer_input": at_input, "return_convergence_delta": True}
    expected = by_captum(net, X.clone(), layer=layer, **options)
    if layer in ("add", "layer1.0.total") and at_input:
        expected = (tuple(expected[0]), expected[1])  # a list of one list, or of tensors, by device
    found = ours.LayerLRP(net, net.get_submodule(layer)).attribute(X, **options)
    if isinstance(found[0], tuple):
        assert len(found[0]) == 2 and all(part.shape == found[0][0].shape for part in found[0])
        return
    assert_same(found, expected)


def test_layers_together_and_all() -> None:
    net = build(CaptumVGG)
    conv, fc = net.features[0], net.classifier[1]  # type: ignore[index]
    attribution = ours.LayerLRP(net, [conv, fc])
    found, deltas = attribution.attribute(X, 1, return_convergence_delta=True)
    assert isinstance(found, list) and isinstance(deltas, list) and len(found) == len(deltas) == 2
    for relevance, delta, layer in zip(found, deltas, (conv, fc), strict=True):
        single = ours.LayerLRP(net, layer).attribute(X, 1, return_convergence_delta=True)
        assert_same((relevance, delta), single, 0)
    every = ours.LayerLRP(net, None).attribute(X, 1)
    leaves = [m for m in net.modules() if next(m.children(), None) is None and not isinstance(m, nn.Dropout)]
    assert len(every) == len(leaves)
    container = ours.LayerLRP(net, net.features).attribute(X, 1)  # which captum cannot
    assert_same(container, every[len(list(net.features)) - 1], 0)
    twice = build(Residual)
    parts = ours.LayerLRP(twice, twice.layer1[0].relu).attribute(X, 1)  # type: ignore[index]
    assert isinstance(parts, tuple) and len(parts) == 2
    with pytest.raises(ValueError, match="no module of this model"):
        ours.LayerLRP(net, nn.Linear(2, 2))
    with pytest.raises(TypeError, match="layer must be a module"):
        ours.LayerLRP(net, "features.0")  # type: ignore[arg-type]
    net.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"'unused' \(Linear\) did not run"):
        ours.LayerLRP(net, net.unused).attribute(X, 1)


class Further(nn.Module):
    """Inputs, a tensor and a number behind them, in any number."""

    def __init__(self, make_relu: Any = nn.ReLU) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 5)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        y, *rest = more
        h = torch.cat([self.a(x), self.b(y)], 1)
        for extra in rest:
            h = self.relu(h) if extra is None else h.masked_fill(extra.bool(), 0.0)  # captum makes numbers of bools
        return self.c(self.relu(h))


@pytest.mark.parametrize(
    "further", [None, torch.zeros(3, 16, dtype=torch.bool), (None,), (torch.arange(16) % 2 == 0, None)]
)
def test_further_arguments(further: Any) -> None:
    net = build(Further)
    inputs = (A, A.flip(0))
    expected = by_captum(net, tuple(x.clone() for x in inputs), 2, further, return_convergence_delta=True)
    if further is not None and not (isinstance(further, Tensor) or isinstance(further[0], Tensor)):
        expected = None  # its ReLU runs twice, one after the other: captum agrees by chance only
    attribution = ours.LRP(net)
    found = attribution.attribute(inputs, 2, further, return_convergence_delta=True)
    if expected is not None:
        assert_same(found, expected)
    assert_same(attribution.attribute(inputs, 2, further), found[0], 0)
    single = ours.LRP(net).attribute(
        (A,), 2, (A.flip(0), *(further if isinstance(further, tuple) else (further,) if further is not None else ()))
    )
    assert isinstance(single, tuple) and len(single) == 1
    assert_same(single[0], found[0][0])
    own = lrp.LRP(net, lrp.EpsilonLayerwise(1e-9))
    assert_same(tuple(m.detach() for m in own.attribute(inputs, 2, further)), found[0], 1e-6)


class Squared(theirs.PropagationRule):
    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        module.weight.data = module.weight.data**2
        if module.bias is not None:
            module.bias.data = module.bias.data.abs() * inputs[0].mean()


class OwnSquared(ours.PropagationRule):
    _manipulate_weights = Squared._manipulate_weights


class Hooked(theirs.EpsilonRule):
    def forward_hook(self, module: Any, inputs: Any, outputs: Any) -> Any:
        return super().forward_hook(module, inputs, outputs)


def after(make: Callable[[], nn.Module], rule: Any) -> nn.Module:
    net = build(lambda _: nn.Sequential(nn.Linear(6, 6), make(), nn.Linear(6, 3)))  # type: ignore[arg-type]
    net[1].rule = rule  # type: ignore[index, union-attr]
    return net


class Swish(nn.Module):
    """An activation written out."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x)


class OneFunction(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.inner) * 2 + F.softplus(x)


OTHERS: dict[str, Callable[[Any], nn.Module]] = {
    "sigmoid": lambda r: after(nn.Sigmoid, r.EpsilonRule()),
    "sigmoid, large": lambda r: after(nn.Sigmoid, r.EpsilonRule(0.1)),
    "gelu": lambda r: after(nn.GELU, r.EpsilonRule(0.1)),
    "leaky": lambda r: after(nn.LeakyReLU, r.GammaRule()),
    "layer norm": lambda r: after(lambda: nn.LayerNorm(6), r.EpsilonRule(0.01)),
    "softmax": lambda r: after(lambda: nn.Softmax(1), r.EpsilonRule(0.01)),
    "identity": lambda r: after(nn.GELU, r.IdentityRule()),
    "identity of a norm": lambda r: after(lambda: nn.LayerNorm(6), r.IdentityRule()),
    "identity of a layer": lambda r: after(lambda: nn.Linear(6, 6), r.IdentityRule()),
    "own": lambda r: after(OneFunction, r.EpsilonRule()),
    "own, gamma": lambda r: after(OneFunction, r.GammaRule()),  # it has no `weight`: nothing changes
    "own rule": lambda r: after(lambda: nn.Linear(6, 6), Squared() if r is theirs else OwnSquared()),
    "prelu": lambda r: after(nn.PReLU, r.EpsilonRule(0.1)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_rules_of_any_module(name: str) -> None:
    expected = by_captum(OTHERS[name](theirs), A.clone(), 1)
    assert_same(ours.LRP(OTHERS[name](theirs)).attribute(A, 1), expected, 1e-8)
    assert_same(ours.LRP(OTHERS[name](ours)).attribute(A, 1), expected, 1e-8)


REFUSED: list[tuple[Callable[[], nn.Module], str]] = [
    (lambda: after(lambda: nn.LayerNorm(6), theirs.GammaRule()), "GammaRule of '1' .LayerNorm. changes weights"),
    (lambda: after(lambda: nn.Linear(6, 6), Hooked()), "Hooked of '1' overrides forward_hook"),
    (lambda: after(Swish, ours.EpsilonRule(0.1)), "EpsilonRule of '1' .Swish. has a stabiliser of 0.1"),
    (lambda: after(OneFunction, ours.IdentityRule()), "IdentityRule of '1' .OneFunction."),
]


@pytest.mark.parametrize(("make", "text"), REFUSED, ids=lambda v: v[:20] if isinstance(v, str) else "")
def test_rules_that_are_not_known_are_refused(make: Callable[[], nn.Module], text: str) -> None:
    with pytest.raises(TypeError, match=f"module.rule: {text}"):
        ours.LRP(make()).attribute(A, 1)


def test_rules_must_be_rules() -> None:
    net = build(Several)
    net.net[0].rule = 1  # type: ignore[index, union-attr]
    for make in (lambda: ours.LRP(net), lambda: ours.LayerLRP(net, net.net[0])):  # type: ignore[index]
        with pytest.raises(TypeError, match=r"'net.0' has 1 of type int, which is no propagation rule"):
            make()
    with pytest.raises(TypeError, match="model must be"):
        ours.LRP(lambda x: x)  # type: ignore[arg-type]
    del net.net[0].rule  # type: ignore[index, union-attr]
    net.net.rule = ours.GammaRule()
    with pytest.warns(UserWarning, match=r"'net' \(Sequential\) contains other modules"):
        ours.LRP(net).attribute(A, 1)


def test_rules_of_lrpkernels_are_rules_too() -> None:
    net = build(CaptumVGG)
    plain = ours.LRP(net).attribute(X, 1)
    net.features[0].rule = lrp.ZBox(-5, 5)  # type: ignore[index, union-attr]
    assert float((ours.LRP(net).attribute(X, 1) - plain).abs().max()) > 1e-6


def test_captums_tools() -> None:
    net = build(CaptumVGG)
    draws = {"nt_samples": 3, "stdevs": 0.1, "nt_type": "smoothgrad", "target": 1}
    torch.manual_seed(0)
    expected = captum.attr.NoiseTunnel(captum.attr.LRP(net)).attribute(X.clone(), **draws)
    torch.manual_seed(0)
    assert_same(captum.attr.NoiseTunnel(ours.LRP(net)).attribute(X, **draws), expected.detach())
    found = captum.metrics.sensitivity_max(ours.LRP(net).attribute, X, target=[0, 1, 2], n_perturb_samples=2)
    assert found.shape == (3,) and bool(torch.isfinite(found).all())


def test_what_captum_cannot() -> None:
    """Networks as they are: reused ReLUs, residual sums, functional calls, a dense layer that runs twice."""
    net, rewritten = pair(Residual, CaptumResidual)
    assert_same(ours.LRP(net).attribute(X, 1), by_captum(rewritten, X.clone(), target=1))
    net, rewritten = pair(VGGLike, CaptumVGG)  # with nn.Flatten
    with pytest.raises(TypeError):
        by_captum(net, X.clone(), target=1)
    assert_same(ours.LRP(net).attribute(X, 1), by_captum(rewritten, X.clone(), target=1))
    for other in (
        build(Functional),
        nn.Linear(432, 5).double(),
        nn.Sequential(nn.Flatten(), nn.GELU(), nn.Linear(432, 5)).double(),
    ):
        x = X if not isinstance(other, nn.Linear) else X.flatten(1)
        found = ours.LRP(other).attribute(x, 1)
        expected = lrp.LRP(other, lrp.EpsilonLayerwise(1e-9)).attribute(x, 1).detach()
        assert_same(found, expected, 1e-5)

    class Twice(nn.Module):
        def __init__(self, make_relu: Any = nn.ReLU) -> None:
            super().__init__()
            self.layer, self.relu, self.out = nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.relu(self.layer(self.relu(self.layer(x))) + x))

    twice = build(Twice)
    with pytest.raises(RuntimeError, match="more than once"):
        by_captum(twice, A.clone(), target=1)
    _, delta = ours.LRP(twice).attribute(A, 1, return_convergence_delta=True)
    assert float(delta.abs().max()) < 1e-6  # no biases: conserved


def test_nothing_is_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    net = build(CaptumResidual).train()
    rule = net.conv1.rule = theirs.GammaRule()
    before = {
        name: value.clone()
        for name, value in net.state_dict().items()
        if "running" not in name and "tracked" not in name
    }
    x = X.clone()
    with pytest.warns(InputWarning, match=r"training mode: bn1 \(BatchNorm2d\) uses the statistics of this batch"):
        found = ours.LRP(net).attribute(x, 1, verbose=True)
    assert "GammaRule" in capsys.readouterr().out
    assert net.training and net.conv1.rule is rule and not x.requires_grad and not found.requires_grad
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in net.modules())
    attribution = ours.LRP(net.eval())
    assert attribution.has_convergence_delta() and attribution.multiplies_by_inputs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attribution.attribute(x, 1)
    with pytest.raises(NotImplementedError):
        attribution.attribute_future()
    assert repr(ours.GammaRule(0.5)) == "GammaRule(gamma=0.5, set_bias_to_zero=False)"
