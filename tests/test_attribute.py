"""``lrpkernels.LRP.attribute``: the heatmap alone, with further arguments by position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from functions import random
from networks import Residual, VGGLike, build
from torch import Tensor, nn

import lrpkernels as lrp

X = random(3, 3, 12, 12)
TARGETS: list[Any] = [
    None,
    2,
    torch.tensor([0, 1, 2]),
    [0, 3],
    "all",
    lambda logits: logits[:, 0] - logits[:, 1],
    [(1,), 2],
]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: "callable" if callable(t) else repr(t))
@pytest.mark.parametrize("network", [VGGLike, Residual])
def test_it_is_the_second_of_a_call(network: type[nn.Module], target: Any) -> None:
    attribution = lrp.LRP(build(network), lrp.EpsilonPlus())
    assert torch.equal(attribution.attribute(X, target=target), attribution(X, target)[1])
    assert torch.equal(attribution.attribute(X, target, memory_budget=1), attribution(X, target, memory_budget=1)[1])


class Further(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float = 1.0, *rest: Tensor, shift: float = 0.0) -> Tensor:
        hidden = torch.relu(self.a(x) + scale * self.b(y)) + shift
        for part in rest:
            hidden = hidden + part
        return self.out(hidden)


COMPOSITE = lrp.Composite({"a": lrp.Gamma(0.5)}, default=lrp.EpsilonLayerwise(1e-6))  # names are those of the model


def test_further_arguments() -> None:
    net, attribution = further()
    x, y, rest = random(5, 4), random(5, 4, seed=1), random(5, 6, seed=2)
    assert torch.equal(attribution.attribute(x, 1, y), attribution(x, 1, y=y)[1])
    assert torch.equal(attribution.attribute(x, 1, (y, 0.5)), attribution(x, 1, y=y, scale=0.5)[1])
    whole = attribution.attribute(x, 1, (y, 0.5, rest))
    assert whole.shape == x.shape and not torch.equal(whole, attribution.attribute(x, 1, (y, 0.5)))
    with pytest.raises(TypeError, match="additional_forward_args: further arguments by position"):
        attribution.attribute({"x": x}, 1, y)
    with pytest.raises(ValueError, match="the model has no module 'c'"):
        lrp.LRP(net, lrp.Composite({"c": lrp.Gamma()})).attribute(x, 1, y)


def test_further_arguments_of_static_calls() -> None:
    net, _ = further()
    inputs = random(5, 4), random(5, 4, seed=1)
    attribution = lrp.LRP(net, COMPOSITE, static=True)
    for scale in (0.5, 0.5, 2.0):
        found = attribution.attribute(inputs, 1, scale, shift=2.0)
        for part, expected in zip(found, attribution(inputs, 1, scale=scale, shift=2.0)[1], strict=True):
            assert torch.equal(part, expected)
    with pytest.raises(
        lrp.UnsupportedOperationError, match=r"static: expected additional_forward_args\[0\] to be a number"
    ):
        attribution.attribute(inputs[0], 1, inputs[1])


def further() -> tuple[nn.Module, lrp.LRP]:
    torch.manual_seed(0)
    net = Further().double()
    return net, lrp.LRP(net, COMPOSITE)


def test_it_is_differentiable() -> None:
    net = build(VGGLike)
    lrp.LRP(net).attribute(X, 1).abs().sum().backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if n.endswith("weight"))
