"""lrpkernels.compat.captum on models and inputs that captum's own tests do not have."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from captum.attr._utils import lrp_rules as theirs
from functions import random
from test_compat_captum import assert_same, by_captum
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lrpkernels as lrp
from lrpkernels.compat import captum as ours
from lrpkernels.errors import NonFiniteError

X = random(4, 3, 8, 8)
A = random(3, 4, seed=1)


def convolutional() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    return nn.Sequential(*layers).double().eval()


def dense() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()


class Returns(nn.Module):
    """A model whose answer is another form of that of ``net``."""

    def __init__(self, net: nn.Module, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x: Tensor) -> Any:
        return self.form(self.net(x))


def test_forms_of_answers() -> None:
    net = convolutional()
    expected = ours.LRP(net).attribute(X, 1)
    assert_same(ours.LRP(Returns(net, lambda out: {"logits": out, "other": 2 * out})).attribute(X, 1), expected)
    assert_same(ours.LRP(Returns(net, lambda out: out[:, 1])).attribute(X), expected)
    assert_same(ours.LRP(Returns(net, lambda out: out[:, :, None, None])).attribute(X, (1, 0, 0)), expected)
    assert_same(ours.LRP(Returns(net, lambda out: out[:, :, None, None])).attribute(X, 1), expected)
    with pytest.raises(ours.TargetError, match="1 indices for an output of shape"):
        ours.LRP(Returns(net, lambda out: out[:, 1])).attribute(X, 0)


def test_wrapped_models_and_modes() -> None:
    net = convolutional()
    expected = ours.LRP(net).attribute(X, [1, 2, 3, 0])
    for same in (nn.DataParallel(net), copy.deepcopy(net), net.requires_grad_(False)):
        assert_same(ours.LRP(same).attribute(X, [1, 2, 3, 0]), expected)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context:
            assert_same(ours.LRP(net).attribute(X.clone().requires_grad_(), list(np.array([1, 2, 3, 0]))), expected)
    for again in (pickle.loads(pickle.dumps(ours.LRP(net))), copy.deepcopy(ours.LRP(net))):
        assert_same(again.attribute((X,), list(torch.tensor([1, 2, 3, 0]))), (expected,))
    coarse = ours.LRP(net.bfloat16()).attribute(X.bfloat16(), [1, 2, 3, 0])
    assert coarse.dtype == torch.bfloat16 and float((coarse - expected).abs().max()) < 0.2 * float(expected.abs().max())


def test_no_examples() -> None:
    net = convolutional()
    found, delta = ours.LRP(net).attribute(X[:0], 1, return_convergence_delta=True)
    assert found.shape == (0, 3, 8, 8) and delta.shape == (0,)
    assert ours.LRP(net).attribute(X[:0], []).shape == (0, 3, 8, 8)


def test_a_module_of_two_names_and_a_child_called_rule() -> None:
    net = dense()
    net[0].rule = theirs.GammaRule()
    expected = ours.LRP(net).attribute(A, 1)

    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = net[0]
            self.rule = net[2]

        def forward(self, x: Tensor) -> Tensor:
            return self.rule(F.relu(self.second(x)))

    assert_same(ours.LRP(Names()).attribute(A, 1), expected)
    assert_same(ours.LayerLRP(Names(), net[0]).attribute(A, 1), ours.LayerLRP(net, net[0]).attribute(A, 1))


class Squared(ours.PropagationRule):
    def _manipulate_weights(self, module: Any, inputs: Any, outputs: Any) -> None:
        module.weight.data = module.weight.data**2


@pytest.mark.parametrize(
    "rule",
    [theirs.GammaRule(0.5), theirs.Alpha1_Beta0_Rule(), theirs.EpsilonRule(0.1)],
    ids=lambda rule: type(rule).__name__,
)
def test_parametrized_weights(rule: Any) -> None:
    """Which captum does not know: as the layers of their weights."""
    plain, net = dense(), dense()
    parametrizations.weight_norm(net[0])
    parametrizations.spectral_norm(net[2])
    net.eval()
    with torch.no_grad():
        for i in (0, 2):
            plain[i].weight.copy_(net[i].weight)
            plain[i].rule = net[i].rule = rule
    assert_same(ours.LRP(net).attribute(A, 1), by_captum(plain, A.clone(), target=1))
    net[0].rule = Squared()
    with pytest.raises(TypeError, match=r"Squared of '0' .* parametrization makes; torch\.nn\.utils"):
        ours.LRP(net).attribute(A, 1)


def test_one_rule_object_for_all_and_a_model_that_is_a_layer() -> None:
    net, rule = dense(), ours.Alpha1_Beta0_Rule()
    net[0].rule = net[2].rule = rule
    other = dense()
    other[0].rule, other[2].rule = theirs.Alpha1_Beta0_Rule(), theirs.Alpha1_Beta0_Rule()
    assert_same(ours.LRP(net).attribute(A, 1), by_captum(other, A.clone(), target=1))
    layer = nn.Linear(4, 2).double()
    assert_same(ours.LRP(layer).attribute(A, 1), ours.LRP(nn.Sequential(layer)).attribute(A, 1))
    layer.rule = theirs.GammaRule()
    assert_same(ours.LRP(layer).attribute(A, 1), by_captum(nn.Sequential(layer), A.clone(), target=1))
    (whole,) = ours.LayerLRP(layer, None).attribute(A, 1)
    assert_same(whole, torch.stack([torch.zeros(3).double(), layer(A)[:, 1].detach()], 1), 1e-6)


def test_wrong_epsilons_and_classes() -> None:
    for value, error, text in (
        (ours.EpsilonRule(-1.0), ValueError, "epsilon of EpsilonRule of '0' must be a finite number >= 0, got -1.0"),
        (theirs.EpsilonRule("a"), ValueError, "got 'a'"),  # type: ignore[arg-type]
        (ours.GammaRule, TypeError, "which is no propagation rule"),
        ("gamma", TypeError, "'0' has 'gamma' of type str"),
    ):
        net = dense()
        net[0].rule = value
        with pytest.raises(error, match=text):
            ours.LRP(net).attribute(A, 1)


def test_wrong_inputs() -> None:
    net = convolutional()
    bad = X.clone()
    bad[1, 2, 3, 4] = float("nan")
    for target in (1, [1, 2, 3, 0]):
        with pytest.raises(NonFiniteError, match="input 0 holds 1 numbers that are NaN"):
            ours.LRP(net).attribute(bad, target)
    for x, text in (
        (X.numpy(), "got ndarray; torch.from_numpy"),
        ([X], "got list"),
        (X.to(torch.uint8), r"x.float\(\) / 255"),
    ):
        with pytest.raises(TypeError, match=text):
            ours.LRP(net).attribute(x, 1)
    with pytest.raises(TypeError, match="got str"):
        ours.LRP(net).attribute(X, "all")


def test_token_ids_and_transformers() -> None:
    torch.manual_seed(0)
    embedding = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    found, delta = ours.LRP(embedding).attribute(torch.randint(10, (2, 3)), 1, return_convergence_delta=True)
    assert found.shape == (2, 3) and delta.shape == (2,)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(6, 8), layer, nn.Flatten(), nn.Linear(24, 3)).double().eval()
    assert ours.LRP(net).attribute(random(2, 3, 6), 1).shape == (2, 3, 6)
    norms = copy.deepcopy(net)
    norms[1].norm1.rule = norms[1].norm2.rule = ours.IdentityRule()  # type: ignore[union-attr]
    composite = lrp.Composite(default=lrp.EpsilonLayerwise(1e-9), norm=lrp.Pass())
    assert_same(
        ours.LRP(norms).attribute(random(2, 3, 6), 1),
        lrp.LRP(net, composite).attribute(random(2, 3, 6), 1).detach(),
        1e-6,
    )


def test_models_are_let_go() -> None:
    net = dense()
    attribution = ours.LRP(net)
    attribution.attribute(A, 1, ())
    watch = weakref.ref(net)
    del net, attribution
    gc.collect()
    assert watch() is None
