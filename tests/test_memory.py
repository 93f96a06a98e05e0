"""A heatmap, and a training step through one, release everything they held when they end: reference counts, no garbage collector."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from memory_peak import peak_bytes
from networks import NETWORKS, build
from torch import Tensor, nn

import isnet
import lrpkernels as lrp
from benchmarks.networks import NETWORKS as BENCHMARKED
from lrpkernels.layers.registry import leaves, map_leaves

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What only the garbage collector could free."""
    gc.freeze()  # what was there before is not looked through again and again
    gc.disable()
    flags = gc.get_debug()
    try:
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.garbage.clear()
        yield gc.garbage
    finally:
        gc.set_debug(flags)
        gc.garbage.clear()
        gc.enable()
        gc.unfreeze()


def step(net: nn.Module, composite: object, at: list[str] | None = None) -> None:
    with lrp.record(net, X) as tape:
        maps = tape.relevance("all", composite, at=at)
        heatmap = maps if isinstance(maps, Tensor) else maps["input"]
        (heatmap.abs().sum() + tape.output.square().sum()).backward()


@pytest.mark.parametrize(
    "composite",
    [lrp.Epsilon(1e-2, first=lrp.ZBox(0, 1)), lrp.EpsilonPlus(), lrp.EpsilonGammaBox(0.0, 1.0)],
    ids=["epsilon and box", "EpsilonPlus", "EpsilonGammaBox"],
)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_leaves_no_tensors_to_the_garbage_collector(name: str, composite: object, garbage: list[object]) -> None:
    net = build(NETWORKS[name])
    step(net, composite)
    gc.collect()
    garbage.clear()
    step(net, composite)
    gc.collect()
    held = [
        type(found).__name__ for found in garbage if isinstance(found, Tensor) or "lrpkernels" in type(found).__module__
    ]
    assert not held


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3).double(), nn.Conv2d(6, 3, 3).double()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        a = torch.relu_(self.first(x))
        b = torch.roll(torch.sigmoid(self.second(a)).mul_(2), 1, 3).add_(1)
        return {"logits": torch.cat([b.mean((2, 3)), b.amax((2, 3))], 1)}


def test_nor_do_in_place_calls_and_nested_outputs(garbage: list[object]) -> None:
    net = InPlace()
    with lrp.record(net, X) as tape:
        heatmap = tape.relevance(1, output=lambda out: out["logits"])
        heatmap.abs().sum().backward()
        assert heatmap.shape == X.shape
    del tape, heatmap
    gc.collect()
    assert not [found for found in garbage if isinstance(found, Tensor)]


def test_nested_arguments() -> None:
    tree = (1, [torch.Size([2, 3]), {"a": (4, None)}], slice(1, 2))
    assert leaves(tree) == [1, torch.Size([2, 3]), 4, None, slice(1, 2)]
    doubled = map_leaves(lambda leaf: leaf * 2 if isinstance(leaf, int) else leaf, tree)
    assert doubled == (2, [torch.Size([2, 3]), {"a": (8, None)}], slice(1, 2))
    values = torch.max(torch.rand(2, 2), 1)
    assert type(map_leaves(lambda leaf: leaf, values)) is type(values) and len(leaves(values)) == 2


BIG = X.repeat(2, 1, 4, 4)  # activations, not weights, fill the memory
LIMITS = {"epsilon": 1.0, "EpsilonPlus": 1.3}


@pytest.mark.parametrize("composite", LIMITS)
@pytest.mark.parametrize("name", ["residual", "dense"])
def test_a_heatmap_takes_little_more_memory_than_an_input_gradient(name: str, composite: str) -> None:
    net = build(NETWORKS[name]).requires_grad_(False)
    attribution = lrp.LRP(net, lrp.EpsilonPlus() if composite == "EpsilonPlus" else lrp.Epsilon(1e-2))

    def gradient() -> None:
        image = BIG.clone().requires_grad_()
        torch.autograd.grad(net(image).amax(1).sum(), image)

    def heatmap() -> None:
        with torch.no_grad():
            attribution(BIG)

    (base, _), (most, left) = peak_bytes(gradient), peak_bytes(heatmap)
    assert left == 0
    assert most <= LIMITS[composite] * base, most / base


@pytest.mark.parametrize("name", ["resnet18", "dense"])
def test_an_isnet_step_takes_less_than_twice_the_memory_of_a_plain_one(name: str) -> None:
    model = (BENCHMARKED[name](5).double() if name in BENCHMARKED else build(NETWORKS[name])).train()
    net = isnet.ISNet(model).train()

    def plain() -> None:
        model.zero_grad()
        model(BIG).square().sum().backward()

    def step() -> None:
        model.zero_grad()
        out = net(BIG)
        (out.logits.square().sum() + out.heatmaps["input"].abs().sum()).backward()

    (base, _), (most, _) = peak_bytes(plain), peak_bytes(step)
    assert most <= 1.8 * base, most / base


def test_what_was_not_kept_is_said() -> None:
    net = build(NETWORKS["residual"])
    with torch.no_grad(), lrp.record(net, X, composite=lrp.Epsilon(1e-2), at=["layer1"]) as tape:
        tape.relevance(1, lrp.Epsilon(1e-2), at=["layer1"])
        with pytest.raises(RuntimeError, match="not kept"):
            tape.relevance(1, lrp.ZPlus(1e-2))
        with pytest.raises(RuntimeError, match="not kept"):
            tape.relevance(1, lrp.Epsilon(1e-2), at=["layer2.0.bn1"])
        tape.relevance(1, lrp.Epsilon(1e-2), release=True)
        with pytest.raises(RuntimeError, match="release"):
            tape.relevance(1, lrp.Epsilon(1e-2))


class _WinnersOverTwo(lrp.Epsilon):
    """A rule of a user's own, which reads more than its base and does not say so."""

    def max_pool(self, op: Any, multiplier: Tensor) -> Tensor:
        return op.winner(multiplier * op.output.tensor / (2 * op.output.tensor + 1e-9))


@pytest.mark.parametrize("rule", [_WinnersOverTwo(1e-2), lrp.EpsilonLayerwise(1e-2), lrp.EpsilonGammaBox(0.0, 1.0)])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_tape_that_keeps_what_is_read_gives_the_maps_of_one_that_keeps_all(name: str, rule: Any) -> None:
    net = build(NETWORKS[name])
    with torch.no_grad():
        with lrp.record(net, X) as tape:
            expected = tape.relevance(1, rule)
        with lrp.record(net, X, composite=[lrp.Epsilon(1e-2), rule]) as tape:
            found = tape.relevance(1, rule)
            again = tape.relevance(1, rule, release=True)
    assert torch.equal(found, expected) and torch.equal(again, expected)
