"""Kinds of faults that independent reviews of the engine found, each with its smallest input."""

from __future__ import annotations

import gc

import pytest
import torch
from torch import Tensor, nn

import lrpkernels as lrp

X = torch.rand(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def _net() -> nn.Sequential:
    torch.manual_seed(1)
    layers = (nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(180, 3))
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_gamma_without_gamma_is_the_layer_form(static: bool, checkpoint: bool) -> None:
    net = _net()
    for _ in range(2):
        gamma, layerwise = (
            lrp.LRP(net, rule, checkpoint=checkpoint, static=static)(X, 1)[1]
            for rule in (lrp.Gamma(0.0, 1e-2), lrp.EpsilonLayerwise(1e-2))
        )
        torch.testing.assert_close(gamma, layerwise, rtol=1e-12, atol=1e-14)
    gamma.square().sum().backward()


class Split(nn.Module):
    """Convolutions behind parts of an operation with several outputs."""

    def __init__(self, used: str) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.used, self.a, self.b = used, nn.Conv2d(2, 3, 3), nn.Conv2d(2, 3, 3)

    def forward(self, x: Tensor, sliced: bool = False) -> Tensor:
        first, second = (x[:, :2], x[:, 2:]) if sliced else x.chunk(2, 1)
        parts = {"both": (self.a(first), self.b(second)), "second": (self.b(second),), "first": (self.a(first),)}
        return sum(parts[self.used][1:], parts[self.used][0]).mean((2, 3))


@pytest.mark.parametrize("used", ["both", "first", "second"])
@pytest.mark.parametrize("first", [lrp.ZBox(0, 1), lrp.Flat(), lrp.WSquare()], ids=lambda rule: type(rule).__name__)
def test_first_layer_rules_behind_an_operation_with_several_outputs(used: str, first: lrp.Rule) -> None:
    net = Split(used).double()
    rule = lrp.Epsilon(1e-2, first=first)
    expected = lrp.LRP(net, rule)(X, 1, sliced=True)[1]
    assert torch.equal(lrp.LRP(net, rule)(X, 1)[1], expected)


@pytest.mark.parametrize("rule", [lrp.ZPlus(1e-2), lrp.AlphaBeta(2, 1, 1e-2), lrp.Gamma(0.25, 1e-2)], ids=repr)
def test_recompute_with_data_movement_ahead_of_the_first_layer(rule: lrp.Rule) -> None:
    net = nn.Sequential(
        nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(108, 2)
    )
    net.double()
    grads = []
    for checkpoint in (False, True):
        net.zero_grad()
        lrp.LRP(net, rule, checkpoint=checkpoint)(X, 1)[1].square().sum().backward()
        grads.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-12, atol=1e-14)


class Scaled(nn.Module):
    def forward(self, x: Tensor, scale: object = 1) -> Tensor:
        return (x * 2 if scale is True else x).flatten(1)[:, :3]


def test_static_calls_tell_arguments_of_equal_value_apart() -> None:
    net, calls = Scaled(), lrp.StaticCalls()
    for given in (True, 1, 1.0, True):
        with lrp.record(net, X, static=calls, scale=given) as tape:
            assert torch.equal(tape.output, net(X, given))


def test_static_calls_know_a_module_that_returns_its_input() -> None:
    net = nn.Sequential(nn.Identity(), *_net())
    calls = lrp.StaticCalls()
    maps = []
    for _ in range(3):
        with lrp.record(net, X, static=calls) as tape:
            maps.append(tape.relevance(1, at=["0"])["0"])
    assert torch.equal(maps[0], maps[1]) and torch.equal(maps[0], maps[2])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_model_leaves_no_tensor_behind(error: type[BaseException]) -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = _net()

        def forward(self, x: Tensor) -> Tensor:
            self.net(x)
            raise error

    net = Fails()
    gc.collect()
    gc.disable()
    try:
        before = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
        for _ in range(5):
            with pytest.raises(error):
                lrp.LRP(net)(X, 1)
        after = sum(issubclass(type(o), Tensor) for o in gc.get_objects())
    finally:
        gc.enable()
    assert after - before <= 1
