"""Passes that end at a place in the model: the same relevance there, and nothing ahead of it is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import NETWORKS, build
from test_hidden_layers import RULES, X, _places, _tuple
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.engine import explain
from lrpkernels.engine.propagate import propagate
from lrpkernels.graph import Node


def _passed(tape: lrp.Tape, at: list[Any], monkeypatch: pytest.MonkeyPatch) -> tuple[dict[Any, Any], set[str]]:
    """What a pass that ends at places finds, and the modules of the operations that it went through."""
    passed: set[str] = set()

    def through(node: Node, multipliers: Any, rule: lrp.Rule) -> Any:
        passed.add(tape.module_path(node.module or tape.model))
        return propagate(node, multipliers, rule)

    with monkeypatch.context() as patch:
        patch.setattr(explain, "propagate", through)
        return tape.relevance(1, lrp.Epsilon(1e-2), at=at, to_input=False), passed


@pytest.mark.parametrize("rule", RULES, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_pass_may_end_at_any_place(name: str, rule: Any) -> None:
    net = build(NETWORKS[name])
    places = _places(net)
    with torch.no_grad(), lrp.record(net, X) as tape:
        whole = tape.relevance(1, rule, at=places)
        for at in (*([place] for place in places), places[::3]):
            found = tape.relevance(1, rule, at=at, to_input=False)
            assert list(found) == at
            for place in at:
                for a, b in zip(_tuple(found[place]), _tuple(whole[place]), strict=True):
                    assert torch.equal(a, b), place


def test_nothing_ahead_of_where_a_pass_ends_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    net = build(NETWORKS["residual"])
    behind = {
        "layer2.0.conv1",
        "layer2.0.down.0",
        "layer2.0.relu",
        "layer2.1.conv1",
        "layer2.1.conv2",
        "layer2.0.conv2",
    }
    with torch.no_grad(), lrp.record(net, X) as tape:
        _, passed = _passed(tape, ["layer1"], monkeypatch)
        assert behind <= passed and not any(n.startswith(("layer1", "conv1", "maxpool")) for n in passed)
        _, passed = _passed(tape, ["layer2.1.conv1"], monkeypatch)  # inside a block, beside a shortcut
        inside = {"layer2.1.bn1", "layer2.1.conv2", "layer2.1.relu", "layer2.1"}
        assert {n for n in passed if n.startswith(("layer", "conv"))} == inside
        _, passed = _passed(tape, ["fc"], monkeypatch)
        assert not passed
        _, passed = _passed(tape, [lrp.input_of("conv1")], monkeypatch)
        assert "conv1" in passed


class Parallel(nn.Module):
    """A U-Net in small: the first features go past the middle, too; another layer goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle, self.up = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 2, 1)
        self.other = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        u = self.stem(x).relu()
        self.other(x)
        return self.up(torch.cat([self.middle(u).relu(), u], 1)).mean((2, 3))


def test_what_goes_past_the_place_in_parallel_is_left_out_and_places_without_relevance_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    net = Parallel().double()
    with torch.no_grad(), lrp.record(net, X) as tape:
        found, passed = _passed(tape, ["middle"], monkeypatch)
        assert "up" in passed and not {"stem", "middle"} & passed
        assert torch.equal(found["middle"], tape.relevance(1, at=["middle"])["middle"])
        condition = [{"stem": [1]}]  # ahead of the place: it drops what goes past it
        for at in (["middle"], ["stem"]):
            whole = tape.relevance(1, at=at, conditions=condition)
            assert torch.equal(tape.relevance(1, at=at, conditions=condition, to_input=False)[at[0]], whole[at[0]])
        with pytest.raises(lrp.UnusedInputError, match="no relevance reaches 'other'"):
            tape.relevance(1, at=["other"], to_input=False)
        for at in (None, []):
            with pytest.raises(ValueError, match=r"to_input: False needs places where the pass ends.*write at=\[NAME"):
                tape.relevance(1, at=at, to_input=False)


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_gradients_through_a_pass_that_ends_at_a_place_are_those_of_the_whole_pass(
    static: bool, checkpoint: bool
) -> None:
    net = build(NETWORKS["residual"])
    found = []
    for to_input in (True, False):
        calls = lrp.StaticCalls() if static else None
        for _ in range(2):
            net.zero_grad()
            options: dict[str, Any] = {"static": calls, "checkpoint": checkpoint, "composite": lrp.Epsilon(1e-2)}
            with lrp.record(net, X, at=["layer1"], **options) as tape:
                maps = tape.relevance([0, 2], lrp.Epsilon(1e-2), at=["layer1"], to_input=to_input, release=True)
            maps["layer1"].square().sum().backward()
        found.append([p.grad for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)  # as that of the last bias
        if a is not None:
            torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-13)
