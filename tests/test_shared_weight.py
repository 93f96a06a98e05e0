"""Weight gradients that wait for the layer's own backward pass: the same numbers, whatever is differentiated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lrpkernels as lrp

X = torch.rand(2, 8, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
RULE = lrp.Epsilon(1e-2)


class Late(nn.Module):
    """Small maps, large weights: with and without batch norm and ReLU, strided, a residual sum, dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(8, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.b, self.c = (nn.Conv2d(64, 64, 3, padding=1) for _ in range(2))
        self.d, self.e = nn.Linear(64, 256), nn.Linear(256, 64)
        self.head = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        u = self.norm(self.a(x)).relu()
        u = self.c(self.b(u).relu()) + u
        return self.head(self.e(self.d(u.mean((2, 3))).relu()))


LOSSES: dict[str, Callable[[Tensor, list[Tensor]], Tensor]] = {
    "both": lambda logits, maps: logits.square().sum() + sum(m.square().sum() for m in maps),
    "heatmaps alone": lambda logits, maps: sum((m.square().sum() for m in maps), torch.zeros(())),
    "logits alone": lambda logits, maps: logits.square().sum(),
}


def _network() -> nn.Module:
    torch.manual_seed(0)
    return Late().double().train()


def _forward(net: nn.Module, checkpoint: bool, composites: list[Any]) -> tuple[Tensor, list[Tensor]]:
    with lrp.record(net, X, composite=composites, checkpoint=checkpoint) as tape:
        maps = [tape.relevance("all", composite) for composite in composites]
        if checkpoint:
            assert [op.kind for op in tape.nodes if getattr(op, "shared", None)] == ["conv"] * 2 + ["linear"] * 3
        return tape.output, maps


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("composites", [[RULE], [lrp.ZPlus(1e-2), RULE], [RULE, RULE]], ids=["one", "z+ too", "two"])
def test_gradients_are_those_of_layers_that_do_not_share(composites: list[Any], loss: str) -> None:
    nets = _network(), _network()
    for net, checkpoint in zip(nets, (False, True), strict=True):
        LOSSES[loss](*_forward(net, checkpoint, composites)).backward()
    scale = max(float(p.grad.abs().max()) for p in nets[0].parameters() if p.grad is not None)
    for (name, expected), found in zip(nets[0].named_parameters(), nets[1].parameters(), strict=True):
        reference = torch.zeros_like(expected) if expected.grad is None else expected.grad
        gradient = torch.zeros_like(expected) if found.grad is None else found.grad
        assert float((gradient - reference).abs().max()) <= 1e-12 * scale, name


def test_backward_in_two_parts_and_twice() -> None:
    nets = _network(), _network()
    for net, checkpoint in zip(nets, (False, True), strict=True):
        logits, maps = _forward(net, checkpoint, [RULE])
        LOSSES["heatmaps alone"](logits, maps).backward(retain_graph=True)
        LOSSES["logits alone"](logits, maps).backward(retain_graph=True)
        LOSSES["both"](logits, maps).backward()
    for expected, found in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["a.weight", "b.weight", "c.weight", "d.weight", "head.weight", "norm.weight"])
def test_the_gradient_for_one_weight_alone(name: str) -> None:
    found = []
    for checkpoint in (False, True):
        net = _network()
        loss = LOSSES["both"](*_forward(net, checkpoint, [RULE]))
        found += torch.autograd.grad(loss, [dict(net.named_parameters())[name]])
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


def test_frozen_weights_take_none() -> None:
    net = _network()
    for parameter in net.b.parameters():
        parameter.requires_grad_(False)
    other = copy.deepcopy(net)
    for trained, checkpoint in ((net, True), (other, False)):
        with lrp.record(trained, X, composite=RULE, checkpoint=checkpoint) as tape:
            LOSSES["both"](tape.output, [tape.relevance(1, RULE)]).backward()
    assert net.b.weight.grad is None
    torch.testing.assert_close(net.c.weight.grad, other.c.weight.grad, rtol=1e-10, atol=1e-12)


def test_a_second_derivative_raises() -> None:
    net = _network()
    logits, maps = _forward(net, True, [RULE])
    (gradient,) = torch.autograd.grad(LOSSES["both"](logits, maps), [net.b.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        gradient.sum().backward()
