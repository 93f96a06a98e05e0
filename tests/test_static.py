"""Static calls: what runs without the model's Python code gives the numbers of an ordinary recording, or is refused."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from functions import Wrapped
from networks import NETWORKS, build
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from benchmarks.library_networks import NETWORKS as LIBRARY
from benchmarks.library_networks import build as build_library
from lrpkernels.engine.target import select_logits
from lrpkernels.errors import UnsupportedOperationError

COMPOSITES: dict[str, Any] = {
    "epsilon and box": lrp.Epsilon(1e-2, first=lrp.ZBox(0.0, 1.0)),
    "bounds in lists": lrp.Epsilon(1e-2, first=lrp.ZBox([0.0] * 3, [1.0] * 3)),  # type: ignore[arg-type]
    "layerwise": lrp.EpsilonLayerwise(1e-2),
    "EpsilonPlus": lrp.EpsilonPlus(),
    "by name": lrp.Composite({"*": lrp.ZPlus(1e-2)}, first=lrp.WSquare()),
}
HIDDEN = {"vgg": "features.4", "residual": "layer1.1", "dense": "transition.1", "depthwise": "body.3"}


def _images(seed: int, batch: int = 3) -> Tensor:
    return torch.rand(batch, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _step(
    net: nn.Module, calls: lrp.StaticCalls | None, x: Tensor, composite: Any, **options: Any
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logits and heatmaps of a training step; gradients and buffers after it."""
    net.zero_grad()
    torch.manual_seed(7)  # dropout
    with lrp.record(net, x, composite=composite, static=calls, **options) as tape:
        maps = tape.relevance(1, composite, at=options.get("at"), release=True)
        maps = [*maps.values()] if isinstance(maps, dict) else [maps]
        (tape.output.square().sum() + sum(m.square().sum() for m in maps)).backward()
        values = [tape.output.detach(), *(m.detach() for m in maps)]
    return values, {**{n: p.grad for n, p in net.named_parameters()}, **{n: b.clone() for n, b in net.named_buffers()}}


@pytest.mark.parametrize("checkpoint", [False, True], ids=["", "checkpoint"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_bit_for_bit_those_of_a_recording(
    name: str, composite: str, training: bool, checkpoint: bool
) -> None:
    net = build(NETWORKS[name]).train(training)
    other, calls = copy.deepcopy(net), lrp.StaticCalls()
    options: dict[str, Any] = {"at": [HIDDEN[name]]} if name in HIDDEN else {}
    for seed in range(5):  # the first notes the calls, the second makes operations that the others use again
        values, state = _step(net, calls, _images(seed), COMPOSITES[composite], checkpoint=checkpoint, **options)
        expected, reference = _step(other, None, _images(seed), COMPOSITES[composite], checkpoint=checkpoint, **options)
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
        assert state.keys() == reference.keys()
        for key, tensor in reference.items():
            assert state[key] is tensor or torch.equal(state[key], tensor), key
        for parameters in (net.parameters(), other.parameters()):
            with torch.no_grad():
                for parameter in parameters:  # training goes on
                    parameter -= 1e-3 * parameter.grad.sign() if parameter.grad is not None else 0


@pytest.mark.parametrize("name", LIBRARY)
def test_networks_of_the_field(name: str) -> None:
    model, x = build_library(name)
    attribution, plain = lrp.LRP(model, static=True), lrp.LRP(model)
    with torch.no_grad():
        for _ in range(3):
            attribution(x, 1)
        again = x.flip(0) * 0.9
        output, heatmap = attribution(again, 1)
        expected, reference = plain(again, 1)
    assert type(output) is type(expected)
    assert torch.equal(select_logits(output, None), select_logits(expected, None))
    assert torch.equal(heatmap, reference)


class _Counting(nn.Module):
    """Counts how often its Python code runs; uses what is awkward: in-place calls, splits, functional calls, shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0
        self.first, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.second = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))
        self.head, self.offset = nn.Linear(8, 3), torch.full((4, 1, 1), 0.1, dtype=torch.float64)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        self.runs += 1
        u = F.relu(self.norm(self.first(x)), inplace=True)
        u += F.dropout(self.second(u), 0.3, self.training)
        left, right = (u + self.offset).chunk(2, 1)
        u = torch.cat([left.relu(), F.max_pool2d(right, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
        u = torch.cat([u, u.new_ones(x.shape[0], 4, *u.shape[2:])], 1)
        return gain * self.head(u.mean((2, 3)).view(x.size(0), -1))


def test_the_models_own_code_runs_once_for_each_form_and_mode() -> None:
    net, calls = _Counting().double(), lrp.StaticCalls()
    for batch in (3, 2, 3, 2):
        _step(net, calls, _images(0, batch), lrp.Epsilon(), check=False)
    assert net.runs == 2
    net.eval()
    _step(net, calls, _images(0), lrp.Epsilon(), check=False)
    _step(net, calls, _images(0), lrp.ZPlus(), check=False)  # keeps other values
    with torch.no_grad(), lrp.record(net, _images(0), composite=lrp.Epsilon(), static=calls, check=False):
        assert net.runs == 5
    _step(net, calls, _images(0), lrp.Epsilon(), gain=2.0, check=False)
    assert net.runs == 6


def test_awkward_calls_are_run_again_as_they_were() -> None:
    net = _Counting().double()
    other, calls = copy.deepcopy(net), lrp.StaticCalls()
    for seed in range(3):
        values, state = _step(net, calls, _images(seed), lrp.ZPlus(1e-2), check=False)
        expected, reference = _step(other, None, _images(seed), lrp.ZPlus(1e-2), check=False)
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))
        assert all(torch.equal(state[key], tensor) for key, tensor in reference.items())
    assert (net.runs, other.runs) == (1, 3) and int(net.norm.num_batches_tracked) == 3


WRITTEN: dict[str, tuple[Any, Any]] = {
    "into a view of a recorded tensor": (lambda x: (x * x).flatten(1).view_as(x), lambda x: x.relu_()),
    "into a new tensor, as a number's": (lambda x: torch.zeros_like(x).add_(x), lambda x: x + 0.5),
    "into a new tensor": (lambda x: x.new_empty(x.shape).copy_(x), lambda x: x.mul_(2.0)),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_calls_that_write_make_the_same_operations_again(kind: str) -> None:
    first, second = map(Wrapped, WRITTEN[kind])
    with torch.no_grad():
        _, width, *sizes = second(first(_images(0))).shape
    head = nn.Linear(width * sizes[0] * sizes[1], 3)
    net = nn.Sequential(first, second, nn.BatchNorm2d(width), nn.Flatten(), head).double().eval()
    calls = lrp.StaticCalls()
    for seed in range(3):
        values, state = _step(net, calls, _images(seed), lrp.ZPlus(1e-2), at=["1", "2"], check=False)
        expected, reference = _step(net, None, _images(seed), lrp.ZPlus(1e-2), at=["1", "2"], check=False)
        for ours, theirs in [*zip(values, expected, strict=True), *((state[key], reference[key]) for key in reference)]:
            assert ours.shape == theirs.shape and torch.equal(ours, theirs)


@pytest.mark.parametrize("gradients", [True, False])
def test_several_tapes_at_once(gradients: bool) -> None:
    net, calls = build(NETWORKS["residual"]).eval(), lrp.StaticCalls()
    with torch.set_grad_enabled(gradients):
        for _ in range(3):
            tapes = [lrp.record(net, _images(seed), composite=lrp.ZPlus(), static=calls) for seed in range(4)]
            maps = [tape.relevance(1, lrp.ZPlus()) for tape in tapes]
            for tape, seed, heatmap in zip(tapes, range(4), maps, strict=True):
                with lrp.record(net, _images(seed)) as plain:
                    assert torch.equal(heatmap, plain.relevance(1, lrp.ZPlus()))
                tape.clear()


def test_parametrized_weights_are_those_of_the_pass() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3, padding=1))
    net = nn.Sequential(normed, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).double()
    calls = lrp.StaticCalls()
    for seed in range(4):
        with torch.no_grad():
            net[0].parametrizations.weight.original0.mul_(1.5)
        values, _ = _step(net, calls, _images(seed), lrp.Epsilon())
        expected, _ = _step(net, None, _images(seed), lrp.Epsilon())
        assert all(torch.equal(a, b) for a, b in zip(values, expected, strict=True))


def test_the_sign_of_the_pixels_is_that_of_the_pass() -> None:
    net, calls = build(NETWORKS["vgg"]).eval(), lrp.StaticCalls()
    with torch.no_grad():
        for shift in (0.0, 0.0, 0.0, -0.5, 0.0, -0.5):
            x = _images(0) + shift
            found = lrp.record(net, x, composite=lrp.ZPlus(), static=calls)
            expected = lrp.record(net, x, composite=lrp.ZPlus())
            assert torch.equal(found.relevance(1, lrp.ZPlus()), expected.relevance(1, lrp.ZPlus()))
            found.clear()


def test_replaced_parameters_are_noticed() -> None:
    net, calls = _Counting().double(), lrp.StaticCalls()
    _step(net, calls, _images(0), lrp.Epsilon(), check=False)
    net.head.weight = nn.Parameter(torch.zeros_like(net.head.weight))
    values, _ = _step(net, calls, _images(0), lrp.Epsilon(), check=False)
    assert torch.equal(values[0], net.head.bias.detach().expand(3, -1)) and net.runs == 2


def test_nothing_of_a_pass_stays_behind() -> None:
    net = _Counting().double().eval()
    attribution = lrp.LRP(net, static=True)
    gc.disable()  # reference counts alone must do
    try:
        for _ in range(4):
            x = _images(0)
            output, heatmap = attribution(x, 1)
            watched = [weakref.ref(tensor) for tensor in (x, output, heatmap)]
            del x, output, heatmap
            assert [reference() for reference in watched] == [None] * 3
    finally:
        gc.enable()


class _Refused(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.head = how, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Any:
        if self.how == "numbers" and x.sum() > 0:
            return self.head(x)
        if self.how == "item":
            return self.head(x * x.max().item())
        if self.how == "hidden":
            return self.head(x + _CONSTANTS[0])
        if self.how == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                return self.head(x)
        if self.how == "custom function":
            return self.head(_Doubled.apply(x))
        return _Logits(self.head(x))


class _Logits(tuple):  # type: ignore[type-arg]
    def __new__(cls, logits: Tensor) -> Any:
        return super().__new__(cls, (logits,))


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


_CONSTANTS = [torch.ones(4)]


@pytest.mark.parametrize(
    ("how", "reason"),
    {
        "numbers": "reads the numbers of a tensor",
        "item": "reads the numbers of a tensor",
        "hidden": "neither made by a PyTorch call of the model nor a parameter",
        "autocast": "switches autocast",
        "custom function": "a custom autograd.Function",
        "output": "the model returns _Logits",
    }.items(),
)
def test_what_may_change_from_call_to_call_is_refused(how: str, reason: str) -> None:
    net = _Refused(how)
    with pytest.raises(UnsupportedOperationError, match=reason):
        lrp.record(net, torch.rand(2, 4), static=lrp.StaticCalls())
    with lrp.record(net, torch.rand(2, 4)) as tape:
        assert tape.nodes


def test_calls_belong_to_one_model() -> None:
    net, calls, x = nn.Linear(4, 2), lrp.StaticCalls(), torch.rand(2, 4)
    lrp.record(net, x, static=calls)
    with pytest.raises(ValueError, match="belong to another model"):
        lrp.record(nn.Linear(4, 2), x, static=calls)
    for other in (copy.deepcopy(calls), pickle.loads(pickle.dumps(calls))):
        lrp.record(nn.Linear(4, 2), x, static=other)
    with pytest.raises(UnsupportedOperationError, match="expected gain to be a number"):
        lrp.record(_Counting().double(), _images(0), static=lrp.StaticCalls(), gain=torch.ones(()))


@pytest.mark.parametrize("variant", ["selective", "stochastic", "original", "dual", "gradient_times_input"])
def test_an_isnet_trains_as_without(variant: Any) -> None:
    net = build(NETWORKS["residual"])
    other = copy.deepcopy(net)
    nets = [
        isnet.ISNet(model, variant, layers=["layer1"], generator=torch.Generator().manual_seed(3), static=static)
        for model, static in ((net, True), (other, False))
    ]
    optimizers = [torch.optim.SGD(n.parameters(), 0.01) for n in nets]
    masks = (torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(5)) > 0.5).double()
    criterion, labels = isnet.ISNetLoss(p=0.7, d=0.9), torch.tensor([0, 1, 2])
    for seed in range(5):
        for trained, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            criterion(trained(_images(seed)), labels, masks).total.backward()
            optimizer.step()
    for (name, a), b in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
