"""Forms of inputs, targets and outputs that are seldom met: they work, or are refused in one line with the remedy."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import isnet
import lrpkernels as lrp

X = torch.rand(2, 4, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
RULES: dict[str, Any] = {
    "epsilon": lrp.Epsilon(),
    "layerwise": lrp.EpsilonLayerwise(),
    "z+": lrp.ZPlus(),
    "alpha-beta": lrp.AlphaBeta(2, 1),
    "gamma": lrp.Gamma(0.25),
    "box": lrp.Epsilon(first=lrp.ZBox(0.0, 1.0)),
    "flat": lrp.Epsilon(first=lrp.Flat()),
    "w2": lrp.Epsilon(first=lrp.WSquare()),
}


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 5, 1), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5, 3)).double().eval()


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    "target", [1, None, "all", [0, 2], lambda logits: logits.sum(1)], ids=["one", "highest", "all", "list", "callable"]
)
def test_an_empty_batch_has_empty_maps(rule: str, target: Any) -> None:
    net, x = _net(), X[:0]
    several = (3,) if target == "all" else (2,) if isinstance(target, list) else ()
    for options in ({}, {"static": True}, {"checkpoint": True}):
        for _ in range(2):
            net.zero_grad()
            logits, heatmap = lrp.LRP(net, RULES[rule], **options)(x, target)
            assert logits.shape == (0, 3) and heatmap.shape == (0, *several, 4, 6, 6) and heatmap.dtype == x.dtype
            heatmap.square().sum().backward()
            assert all(p.grad is None or not p.grad.any() for p in net.parameters())
    with lrp.record(net, x, composite=RULES[rule], at=["3"]) as tape:
        assert tape.relevance(target, RULES[rule], at=["3"])["3"].shape == (0, *several, 5, 2, 2)


@pytest.mark.parametrize(
    ("target", "same"),
    [
        (np.int64(1), 1),
        (np.uint8(1), 1),
        (np.array(1), 1),
        (torch.tensor(1), 1),
        (torch.tensor(1, dtype=torch.int16), 1),
        (np.array([2, 1]), torch.tensor([2, 1])),
        (torch.tensor([2, 1], dtype=torch.uint8), torch.tensor([2, 1])),
        ([np.int64(0), np.int32(2)], [0, 2]),
        (range(2), [0, 1]),
    ],
    ids=repr,
)
def test_integers_of_any_kind_are_targets(target: Any, same: Any) -> None:
    attribution = lrp.LRP(_net())
    assert torch.equal(attribution(X, target)[1], attribution(X, same)[1])
    for wrong in (np.float32(1), np.array([0.5, 1.0]), True, torch.tensor(True)):
        with pytest.raises((TypeError, ValueError), match="target"):
            attribution(X, wrong)


def test_division_by_zero_is_named() -> None:
    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x / 0.0).flatten(1)

    with pytest.raises(lrp.NonFiniteError, match="scale is not finite"):
        lrp.LRP(Divides())(X, 1)
    with torch.no_grad(), lrp.record(Divides(), X) as tape:
        assert torch.isinf(tape.output).all()


def test_float16_on_the_cpu_is_refused_with_the_remedy() -> None:
    net = _net().float()
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(lrp.UnsupportedOperationError, match=r"0: conv .*bfloat16"),
    ):
        lrp.LRP(net)(X.float(), 1)
    with pytest.raises(TypeError, match="input 0 has dtype float16 on the CPU"):
        lrp.LRP(net.half())(X.half(), 1)


class _Branches(nn.Module):
    """One convolution reads three channels of the input, another one the fourth."""

    def __init__(self, parts: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = parts
        self.first, self.second = nn.Conv2d(3, 5, 3).double(), nn.Conv2d(1, 5, 3).double()
        self.head = nn.Linear(5, 3).double()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.parts(x)
        return self.head((self.first(left) + self.second(right)).relu().mean((2, 3)))


def _written(x: Tensor) -> tuple[Tensor, Tensor]:
    left = torch.zeros_like(x[:, :3])
    left[:, :3] = x[:, :3]
    return left, x[:, 3:]


PARTS: dict[str, Any] = {
    "split": lambda x: x.split([3, 1], 1),
    "split_with_sizes": lambda x: torch.split_with_sizes(x, [3, 1], 1),
    "aten.split_with_sizes": lambda x: torch.ops.aten.split_with_sizes.default(x, [3, 1], 1),
    "aten.slice": lambda x: (torch.ops.aten.slice.Tensor(x, 1, 0, 3), torch.ops.aten.slice.Tensor(x, 1, 3, 4)),
    "tensor_split": lambda x: torch.tensor_split(x, [3], 1),
    "unbind": lambda x: (torch.stack(x.unbind(1)[:3], 1), x.unbind(1)[3].unsqueeze(1)),
    "chunk": lambda x: (torch.cat(x.chunk(4, 1)[:3], 1), x.chunk(4, 1)[3]),
    "iteration": lambda x: (torch.stack([*x.transpose(0, 1)][:3], 1), x[:, 3:]),
    "setitem": _written,
}


@pytest.mark.parametrize("first", [lrp.ZBox(0.0, 1.0), lrp.Flat(), lrp.WSquare()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("how", PARTS)
def test_a_first_layer_rule_sees_the_input_through_any_split(how: str, first: Any) -> None:
    composite = lrp.Epsilon(1e-2, first=first)
    expected = lrp.LRP(_Branches(lambda x: (x[:, :3], x[:, 3:])), composite)(X, [0, 2])[1]
    assert expected[:, :, 3].abs().sum() > 0
    for options in ({}, {"static": True}, {"checkpoint": True}):
        attribution = lrp.LRP(_Branches(PARTS[how]), composite, **options)
        for _ in range(2):
            with warnings.catch_warnings():
                warnings.simplefilter("error", lrp.FallbackWarning)
                torch.testing.assert_close(attribution(X, [0, 2])[1], expected)


MOVED: dict[str, Callable[[Tensor], Tensor]] = {
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, 1),
    "slice": lambda x: x[:, :, 1:],
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "stack": lambda x: torch.stack([x, x], 2).flatten(2, 3),
    "cast": lambda x: x.float().double(),
    "unfold": lambda x: x.unfold(2, 2, 1).flatten(3),
    "setitem": lambda x: torch.cat(_written(x), 1),
    "max": lambda x: F.max_pool2d(x, 2, 1),
    "dropout": lambda x: F.dropout(x, 0.3),
}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize(
    "composite", [lrp.ZPlus(), lrp.AlphaBeta(2, 1), lrp.Gamma(0.25)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize("moved", MOVED)
def test_recomputation_behind_moved_inputs(moved: str, composite: Any, sign: float) -> None:
    found = []
    for checkpoint in (False, True):
        layers = [*_net()[:3], nn.Conv2d(5, 5, 1).double(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        model = nn.Sequential(_Function(MOVED[moved]), *layers, nn.Linear(5, 3).double()).train()
        torch.manual_seed(2)
        logits, heatmap = lrp.LRP(model, composite, checkpoint=checkpoint)(X * sign, 1)
        (heatmap.square().sum() + logits.square().sum()).backward()
        found.append([heatmap.detach(), *(p.grad for p in model.parameters())])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize(
    ("spatial", "pool"),
    [
        (1, lambda u: F.max_pool1d(u, 2, 1)),
        (1, lambda u: F.adaptive_max_pool1d(u, 3)),
        (2, lambda u: F.max_pool2d(u, 2)),
        (2, lambda u: F.max_pool2d(u, 3, 1, 1, return_indices=True)[0]),
        (2, lambda u: F.adaptive_max_pool2d(u, 2)),
        (3, lambda u: F.max_pool3d(u, 2)),
    ],
)
def test_max_pools_without_a_batch_dimension_have_their_rule(spatial: int, pool: Any) -> None:
    x = torch.rand(3, *(6,) * spatial, dtype=torch.float64)  # three images of one channel
    model = nn.Sequential(_Function(pool), nn.Flatten())
    lifted = nn.Sequential(_Function(lambda u: pool(u.unsqueeze(1)).squeeze(1)), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("error", lrp.FallbackWarning)
        for rule in (lrp.Epsilon(), lrp.EpsilonLayerwise()):
            ours, expected = (lrp.LRP(m, rule)(x, [1, 2]) for m in (model, lifted))
            assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


class _Detector(nn.Module):
    """Returns an object, as transformers' models do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = _net()

    def forward(self, x: Tensor) -> Any:
        return SimpleNamespace(logits=self.net(x), hidden_states=None)


def test_an_isnet_takes_the_logits_of_an_output_object() -> None:
    plain, wrapped = (isnet.ISNet(model, "dual", input_range=None) for model in (_net(), _Detector()))
    for training in (False, True):
        a, b = plain.train(training)(X), wrapped.train(training)(X)
        if training:
            assert torch.equal(a.logits, b.logits) and torch.equal(a.heatmaps["input"], b.heatmaps["input"])
            assert torch.equal(plain(X, heatmaps=False).logits, wrapped(X, heatmaps=False).logits)
        else:
            assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:Using `torch.compile")
def test_compiled_models_parts_and_callers_are_explained_as_they_are() -> None:
    net = _net()
    expected = lrp.LRP(net)(X, 1)[1]

    def compiled(function: Any) -> Any:
        return torch.compile(function, backend="eager")

    relu = compiled(lambda u: u.relu() * 1)
    relu(X)  # compiled without a recording
    parts = nn.Sequential(net[0], compiled(net[1]), _Function(relu), *net[3:])
    attribution = lrp.LRP(net)
    for heatmap in (
        lrp.LRP(compiled(net))(X, 1)[1],
        lrp.LRP(parts)(X, 1)[1],
        compiled(lambda x: attribution(x, 1)[1] * 1)(X),
    ):
        torch.testing.assert_close(heatmap, expected)
    trained = isnet.ISNet(net, "selective", input_range=None).train()
    torch.testing.assert_close(compiled(trained)(X).heatmaps, trained(X).heatmaps)
