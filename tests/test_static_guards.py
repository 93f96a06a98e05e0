"""Static calls: what changes between two passes is noticed, what may change them without being seen is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lrpkernels as lrp

X = torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class _Net(nn.Module):
    """Every kind of module whose settings may change."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.body = nn.Sequential(normed, nn.BatchNorm1d(6), nn.LeakyReLU(0.1), nn.Dropout(0.0), nn.Linear(6, 5))
        self.gains, self.settings, self.act = [1.0, 2.0], type("Settings", (), {})(), F.relu
        self.settings.scale, self.table = 1.0, {"scales": [{"last": 1.0}]}
        self.runs, self.last = 0, torch.zeros(())
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        self.last = x.detach()
        return self.act(self.body(x)) * self.gains[1] * self.settings.scale * self.table["scales"][0]["last"]


def _other_linear(net: Any) -> None:
    net.body[4] = nn.Linear(6, 7).double()


def _hook(net: Any) -> None:
    net.body[1].register_forward_hook(lambda module, args, out: out * 2)


def _pre_hook(net: Any) -> None:
    net.body[4].register_forward_pre_hook(lambda module, args: (args[0] + 1,))


def _double_weights(net: Any) -> None:
    nn.utils.parametrize.remove_parametrizations(net.body[0], "weight")
    net.body[0].weight.data.mul_(2)


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a module": _other_linear,
    "a module appended": lambda net: net.body.append(nn.Linear(5, 2).double()),
    "a parametrization removed": _double_weights,
    "eps": lambda net: setattr(net.body[1], "eps", 0.5),
    "momentum and mode": lambda net: net.train() and setattr(net.body[1], "momentum", 0.9),
    "slope": lambda net: setattr(net.body[2], "negative_slope", 0.7),
    "p": lambda net: setattr(net.train().body[3], "p", 1.0),
    "a hook": _hook,
    "a hook ahead": _pre_hook,
    "a list": lambda net: net.gains.__setitem__(1, 3.0),
    "a list in a dict": lambda net: net.table["scales"][0].update(last=3.0),
    "a class": lambda net: setattr(net.body[2], "__class__", nn.ReLU),
    "an object of settings": lambda net: setattr(net.settings, "scale", -1.0),
    "a function": lambda net: setattr(net, "act", torch.tanh),
    "forward itself": lambda net: setattr(net.body[2], "forward", torch.neg),
    "a weight": lambda net: setattr(net.body[4], "weight", nn.Parameter(torch.ones(5, 6, dtype=torch.float64))),
    "a weight removed": lambda net: setattr(net.body[4], "bias", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_model_that_was_changed_runs_again(change: str) -> None:
    net, attribution = _Net().eval(), None
    attribution = lrp.LRP(net, lrp.Epsilon(1e-3), static=True, check=False)  # whose runs are counted
    for _ in range(3):
        attribution(X, 1)
    assert net.runs == 1
    CHANGES[change](net)
    for _ in range(3):
        twin = copy.deepcopy(net)
        found, ours = attribution(X, 1)
        expected, heatmap = lrp.LRP(twin, lrp.Epsilon(1e-3))(X, 1)
        assert torch.equal(found, expected) and torch.equal(ours, heatmap)
    assert net.runs in (2, 3)


class _Reading(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(4, 2).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) * self.function(x.detach())


NUMBERS: dict[str, Callable[[Tensor], Any]] = {
    "size of a selection": lambda u: u[u > 0.3].shape[0],
    "length of a selection": lambda u: len(u[u > 0.3]),
    "where": lambda u: torch.where(u > 0.3)[0].numel(),
    "nonzero": lambda u: (u > 0.3).nonzero().shape[0],
    "an f-string": lambda u: float(f"{u.sum()}"),
    "a format": lambda u: float(f"{u.sum():.3f}"),
    "repr": lambda u: len(repr(u)),
    "address": lambda u: u.data_ptr() % 7 + 1,
    "deepcopy": lambda u: copy.deepcopy(u.sum()),
    "item": lambda u: u.sum().item(),
    "aten item": lambda u: torch.ops.aten.item.default(u.sum()),
    "list": lambda u: u.sum(1).tolist()[0],
    "bool": lambda u: 2.0 if u.sum() > 4 else 1.0,
    "array": lambda u: float(u.numpy().sum()),
    "a slice's bound": lambda u: u[:, : (u[0] > 0.3).sum()].sum(),
    "membership": lambda u: 1.0 + (0.5 in u),
    "max of Python": lambda u: max(u[0, 0], u[0, 1]),
}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_that_are_read_are_refused(kind: str) -> None:
    with pytest.raises(lrp.UnsupportedOperationError, match=r"static: \(model\): .*number.*leave `static` out"):
        lrp.LRP(_Reading(NUMBERS[kind]), static=True)(X, 1)


SIZES: dict[str, Callable[[Tensor], Any]] = {
    "repeats": lambda u: u[0].repeat_interleave((u[0] > 0.3).long()).shape[0],
    "zeros": lambda u: torch.zeros((u > 0.3).sum()).shape[0],
    "one hot": lambda u: F.one_hot((u * 10).long()).shape[-1],
    "arange": lambda u: torch.arange((u > 0.3).sum()).numel(),
}


@pytest.mark.parametrize("kind", SIZES)
def test_sizes_that_follow_from_numbers_are_noticed(kind: str) -> None:
    net = _Reading(SIZES[kind])
    attribution, plain = lrp.LRP(net, static=True, check=False), lrp.LRP(net)
    for x in (X, X * 1.0):
        assert torch.equal(attribution(x, 1)[0], plain(x, 1)[0])
    with pytest.raises(lrp.UnsupportedOperationError, match="follow from numbers"):
        attribution(X * 0.1, 1)


def test_few_traces_are_kept() -> None:
    net = _Net().eval()
    attribution = lrp.LRP(net, static=True, check=False)
    for batch in range(1, 60):
        attribution(torch.rand(batch, 4, dtype=torch.float64), 1)
    runs = net.runs
    attribution(torch.rand(59, 4, dtype=torch.float64), 1)
    assert net.runs == runs
    attribution(torch.rand(1, 4, dtype=torch.float64), 1)  # long forgotten
    assert net.runs == runs + 1


def test_a_pass_leaves_the_grad_mode_as_it_was() -> None:
    class Frozen(_Reading):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                u = x * 2
            return self.head(u)

    attribution = lrp.LRP(Frozen(torch.neg), static=True)
    for _ in range(3):
        assert attribution(X, 1)[1].requires_grad and torch.is_grad_enabled()
