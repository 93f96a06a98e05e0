"""Weight gradients of the relevance pass that wait for the classification's backward: the same gradients, from less memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from memory_peak import peak_bytes
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from lrpkernels.functional import conv_weight_gradient, late, late_weight
from lrpkernels.layers import linear

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: nn.Conv2d(64, 64, 3, padding=1), (2, 64, 3, 3)),
    "strided, grouped": (lambda: nn.Conv2d(128, 96, 5, stride=2, padding=1, groups=2), (1, 128, 4, 4)),
    "dilated, no bias": (lambda: nn.Conv2d(64, 96, 3, dilation=2, bias=False), (2, 64, 5, 5)),
    "conv1d": (lambda: nn.Conv1d(96, 128, 5, padding=2), (3, 96, 6)),
    "conv3d": (lambda: nn.Conv3d(64, 64, 3, padding=1), (1, 64, 2, 2, 2)),
    "same": (lambda: nn.Conv2d(64, 64, 3, padding="same"), (2, 64, 3, 3)),
    "same, uneven": (lambda: nn.Conv2d(64, 64, 4, padding="same"), (2, 64, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(64, 64, 3, padding=1), (2, 64, 3, 3)),
    "dense": (lambda: nn.Linear(256, 192), (4, 256)),
    "dense on a sequence": (lambda: nn.Linear(256, 192), (2, 3, 256)),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(64, 64, 3, padding=1)), (2, 64, 3, 3)),
}


class Net(nn.Module):
    def __init__(self, layer: nn.Module, twice: bool = False) -> None:
        super().__init__()
        self.layer, self.relu, self.twice = layer, nn.ReLU(), twice

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.layer(x))
        out = self.relu(self.layer(out)) if self.twice else out
        return out.movedim(-1, 1).flatten(2).mean(2) if out.dim() == 3 else out.flatten(1)


def _net(name: str, twice: bool = False) -> tuple[Net, Tensor]:
    make, shape = CASES[name]
    torch.manual_seed(0)
    return Net(make(), twice).double(), torch.randn(shape, dtype=torch.float64)


def _gradients(net: nn.Module, x: Tensor, target: Any = 1, rule: Any = None, calls: int = 1) -> list[Tensor]:
    """Of a loss on the logits and on heatmaps of one recording."""
    with lrp.record(net, x, check=False) as tape:
        maps = [tape.relevance(target, rule or lrp.Epsilon(1e-2)) for _ in range(calls)]
        loss = tape.output.square().sum() + sum((m.square().sum() + m.abs().sum() for m in maps), x.new_zeros(()))
    found = torch.autograd.grad(loss, list(net.parameters()))
    return list(found)


def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear.functional, "late_weight", lambda *args: None)


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for every weight gradient that has waited."""
    calls: list[None] = []
    backward = late._LateWeight.backward

    def counting(ctx: Any, *factors: Any) -> Any:
        if factors[0] is not None:
            calls.append(None)
        return backward(ctx, *factors)

    monkeypatch.setattr(late._LateWeight, "backward", staticmethod(counting))
    return calls


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_computed_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _net(name)
    waited = _counted(monkeypatch)
    found = _gradients(net, x)
    assert bool(waited) == (name not in ("transposed", "same, uneven"))
    _without_waiting(monkeypatch)
    torch.testing.assert_close(found, _gradients(net, x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    "options",
    [
        {"calls": 3},  # of one recording: only the first one's may wait, or factors would be added up
        {"target": [0, 2]},  # several targets have factors of other sizes
        {"target": "all", "calls": 2},
        {"rule": lrp.ZPlus(1e-2)},
        {"rule": lrp.EpsilonLayerwise(1e-2)},
        {"rule": lrp.Gamma(0.3, eps=1e-2), "calls": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("twice", [False, True], ids=["once", "a shared weight"])
def test_several_passes_targets_and_rules(options: Any, twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _net("conv", twice)
    found = _gradients(net, x, **options)
    _without_waiting(monkeypatch)
    torch.testing.assert_close(found, _gradients(net, x, **options), rtol=1e-10, atol=1e-10)


def test_backward_may_be_asked_for_again_and_for_some_tensors_only(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _net("conv")
    x.requires_grad_()

    def losses() -> Tensor:
        with lrp.record(net, x, check=False) as tape:
            return tape.relevance(1, lrp.Epsilon(1e-2)).square().sum() + tape.output.square().sum()

    loss, parameters = losses(), list(net.parameters())
    first = torch.autograd.grad(loss, [x], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *parameters], retain_graph=True)
    third = torch.autograd.grad(loss, [*parameters, x])
    _without_waiting(monkeypatch)
    expected = torch.autograd.grad(losses(), [x, *parameters])
    torch.testing.assert_close(first[0], expected[0])
    torch.testing.assert_close(list(second), list(expected))
    torch.testing.assert_close([third[-1], *third[:-1]], list(expected))


def test_a_heatmap_that_nothing_is_trained_through_leaves_the_plain_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = _net("conv")
    waited = _counted(monkeypatch)
    with lrp.record(net, x, check=False) as tape:
        tape.relevance(1, lrp.Epsilon(1e-2))
        found = torch.autograd.grad(tape.output.square().sum(), list(net.parameters()))
    torch.testing.assert_close(list(found), list(torch.autograd.grad(net(x).square().sum(), list(net.parameters()))))
    assert not waited


def test_a_second_derivative_is_refused() -> None:
    net, x = _net("conv")
    with lrp.record(net, x, check=False) as tape:
        loss = tape.relevance(1, lrp.Epsilon(1e-2)).square().sum()
    (first,) = torch.autograd.grad(loss, [net.layer.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(first.square().sum(), [net.layer.weight])


def test_small_weights_do_not_wait() -> None:
    gradient = partial(conv_weight_gradient, geometry=None)
    weight = torch.randn(64, 64, 3, 3, requires_grad=True)
    assert late_weight(weight, gradient, (1, 64, 4, 4), (1, 64, 4, 4)) is not None
    assert (
        late_weight(weight, gradient, (9, 64, 6, 6), (9, 64, 6, 6)) is None
    )  # they are smaller than what they are made of
    assert late_weight(weight[:8, :8], gradient, (1, 8, 1, 1), (1, 8, 1, 1)) is None
    assert late_weight(weight.detach(), gradient, (1, 64, 4, 4), (1, 64, 4, 4)) is None
    with torch.no_grad():
        assert late_weight(weight, gradient, (1, 64, 4, 4), (1, 64, 4, 4)) is None


def test_only_one_weight_at_a_time_has_two_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    widths = [96, 96, 96, 96, 384]
    body = [m for a, b in pairwise(widths) for m in (nn.Conv2d(a, b, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(*body, nn.Flatten(), nn.Linear(384 * 4, 3))
    x, net = torch.rand(1, 96, 2, 2), isnet.ISNet(model, input_range=None, check=False).train()

    def step() -> None:
        out = net(x)
        torch.autograd.grad(out.logits.square().sum() + out.heatmaps["input"].abs().sum(), list(model.parameters()))

    weight = 96 * 96 * 9 * 4  # bytes; the last one is four times as large
    most, _ = peak_bytes(step)
    _without_waiting(monkeypatch)
    at_once, _ = peak_bytes(step)
    assert at_once > most + 2 * weight, (at_once / weight, most / weight)
