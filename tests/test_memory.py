"""A heatmap, and a training step through one, release everything they held when they end: reference counts, no garbage collector."""

import gc
from collections.abc import Iterator

import pytest
import torch
from networks import NETWORKS, build
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.layers.nested import leaves, map_leaves

X = torch.rand(2, 3, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What only the garbage collector could free."""
    gc.collect()
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
