"""Functions that a model writes out in elementwise operations mean the named function; stabilizers of activations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from functions import Map, heatmap_of, random
from torch import Tensor

import lrpkernels as lrp

_NEW_GELU = math.sqrt(2 / math.pi)
WRITTEN: dict[str, tuple[Map, Map]] = {
    "hard swish, hardtanh": (lambda x: x * F.hardtanh(x + 3, 0, 6) / 6, F.hardswish),
    "hard swish, clamp": (lambda x: x * torch.clamp(x + 3, 0, 6) / 6, F.hardswish),
    "hard swish, relu6": (lambda x: x * (F.relu6(x + 3) / 6), F.hardswish),
    "gelu, erf": (lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))), F.gelu),
    "gelu, ndtr": (lambda x: x * torch.special.ndtr(x), F.gelu),
    "gelu, GPT-2": (
        lambda x: 0.5 * x * (1 + torch.tanh(_NEW_GELU * (x + 0.044715 * torch.pow(x, 3.0)))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "gelu, fast": (
        lambda x: 0.5 * x * (1 + torch.tanh(x * _NEW_GELU * (1 + 0.044715 * x * x))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
    "silu": (lambda x: x * torch.sigmoid(x), F.silu),
    "silu, quotient": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "silu, in place": (lambda x: torch.sigmoid(x).mul_(x), F.silu),
    "silu, ATen's in place": (lambda x: torch.ops.aten.silu_.default(x.clone()), F.silu),
    "mish": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "mish, all of it": (lambda x: x * torch.tanh(torch.log(1 + torch.exp(x))), F.mish),
    "softplus": (lambda x: torch.log(1 + torch.exp(x)), F.softplus),
    "sigmoid": (lambda x: 1 / (1 + torch.exp(-x)), torch.sigmoid),
    "sigmoid, of ones": (lambda x: torch.ones_like(x) / (torch.exp(-x) + 1), torch.sigmoid),
    "tanh": (lambda x: (torch.exp(x) - torch.exp(-x)) / (torch.exp(x) + torch.exp(-x)), torch.tanh),
    "softsign": (lambda x: x / (1 + x.abs()), F.softsign),
    "square": (lambda x: x * x, torch.square),
    "cube": (lambda x: x * x * x, lambda x: x**3),
}
RULES = [lrp.Epsilon(1e-2), lrp.ZPlus(1e-2), lrp.EpsilonLayerwise(1e-2), lrp.Gamma(0.25)]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("name", WRITTEN)
def test_functions_written_out_are_the_functions(name: str, rule: lrp.Rule) -> None:
    written, named = WRITTEN[name]
    x = torch.cat([torch.tensor([[-2.0, 0.5]], dtype=torch.float64), 3 * random(6, 2, seed=4)])
    weight, bias, head = random(8, 2, seed=5), random(8, seed=6), random(3, 8, seed=7)

    def model(function: Map) -> Map:
        return lambda x: F.linear(function(F.linear(x, weight, bias)), head)

    torch.testing.assert_close(written(x), named(x))
    maps = [heatmap_of(model(function), rule, x) for function in (written, named)]
    torch.testing.assert_close(*maps, rtol=1e-8, atol=1e-12)
    alone = [heatmap_of(lambda x, f=function: f(x), rule, x) for function in (written, named)]
    torch.testing.assert_close(*alone, rtol=1e-8, atol=1e-12)


def test_the_value_itself_may_be_gone_by_the_time_of_the_product() -> None:
    """Nothing but the recording can still hold z when the product shows that it is needed."""

    def shifted(x: Tensor) -> Tensor:
        x = F.linear(x, torch.eye(4, dtype=torch.float64))
        half = 0.5 * x
        x = x + 1
        x = torch.tanh(x)
        return half * x

    x = random(3, 4, seed=8)
    for grad in (torch.no_grad, torch.enable_grad):
        with grad():
            heatmap = heatmap_of(shifted, lrp.Epsilon(1e-9), x)
        torch.testing.assert_close(heatmap.sum(1), (0.5 * x * torch.tanh(x + 1))[:, 1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "gate",
    [
        torch.sigmoid,
        F.hardsigmoid,
        torch.special.ndtr,
        lambda s: F.relu6(s + 3) / 6,
        lambda s: F.hardtanh(s + 3, 0.0, 6.0) / 6,
        lambda s: torch.clamp(s + 3, 0, 6) / 6,
        lambda s: torch.clamp(s / 6 + 0.5, 0, 1),
        lambda s: 0.5 * (torch.tanh(s / 2) + 1),
        lambda s: 0.5 + 0.5 * torch.erf(s),
        lambda s: 1 / (1 + torch.exp(-s)),
    ],
)  # fmt: skip
def test_a_gate_written_out_is_a_gate(gate: Map) -> None:
    x, signal, weigh = random(4, 6, seed=8), random(6, 6, seed=9), random(6, 6, seed=10)
    heatmap = heatmap_of(lambda x: F.linear(x, signal) * gate(F.linear(x, weigh)), lrp.Epsilon(0.0), x)
    factor = gate(F.linear(x, weigh))[:, 1:2]
    torch.testing.assert_close(heatmap, x * signal[1] * factor)


def test_two_values_are_no_function_of_one() -> None:
    """Products of two branches keep their shares, also where one has been an activation of the other's input."""
    x, first, second = random(4, 6, seed=8), random(6, 6, seed=9), random(6, 6, seed=10)
    heatmap = heatmap_of(lambda x: torch.tanh(F.linear(x, first)) * F.linear(x, second), lrp.Epsilon(1e-9), x)
    a, b = torch.tanh(F.linear(x, first)), F.linear(x, second)
    r = (a * b)[:, 1:2]
    expected = 0.5 * x * (first[1] * r / F.linear(x, first)[:, 1:2] + second[1] * r / b[:, 1:2])
    torch.testing.assert_close(heatmap, expected, rtol=1e-5, atol=1e-7)


def test_a_norm_is_no_function_of_one_element() -> None:
    """So a value times its norm is a product of two, to which no stabilizer of activations belongs."""
    x = random(4, 6, seed=11)
    heatmap = heatmap_of(lambda x: F.normalize(x) * x, lrp.Epsilon(0.5), x)
    expected = torch.zeros_like(x)
    expected[:, 1] = (F.normalize(x) * x)[:, 1]
    torch.testing.assert_close(heatmap, expected)


def test_a_constant_added_to_a_layer_is_still_a_bias() -> None:
    x, weight = random(4, 6, seed=8), random(6, 6, seed=9)
    bias = torch.full((6,), 0.3, dtype=torch.float64)
    ways: list[Map] = [
        lambda x: torch.tanh(F.linear(x, weight) + 0.3),
        lambda x: torch.tanh(F.linear(x, weight, bias)),
    ]
    maps = [heatmap_of(way, lrp.EpsilonLayerwise(1e-9), x) for way in ways]
    torch.testing.assert_close(*maps, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "rule",
    [lrp.EpsilonLayerwise(1e-15), lrp.ZPlus(1e-15), lrp.Epsilon(1e-15), lrp.Gamma(0.25, 1e-15)],
    ids=lambda rule: type(rule).__name__,
)
def test_activations_follow_a_small_eps(rule: lrp.Rule) -> None:
    x = torch.tensor([[1e-6, -1e-6, 1e-9]], dtype=torch.float64)
    for function in (torch.tanh, F.silu, F.gelu):
        for k in range(3):
            heatmap = heatmap_of(function, rule, x, k)
            torch.testing.assert_close(heatmap.sum(1), function(x)[:, k], rtol=1e-5, atol=0.0)
