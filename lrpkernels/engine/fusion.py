"""Fusion: conv -> batch norm -> ReLU and their shorter forms become one block, so that each costs one pass over its data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import cast

from ..graph import Node, Value
from ..layers import Block, can_merge
from ..layers.activation import Relu
from ..layers.batch_norm import BatchNorm
from ..layers.linear import LinearNode
from ..rules import Composite

Fuse = Callable[[Sequence[Node], Sequence[Value]], list[Node]]
# For each fused operation the places of its parts: (linear, norm, relu), -1 for none; (node,).
Plan = list[tuple[int, ...]]


def plan_blocks(nodes: Sequence[Node], apart: Collection[Value]) -> Plan:
    """Which of the nodes of a recording, in order, merge: those whose intermediate value no other operation reads.

    What is asked of the relevance pass has no say: the walk reads, and starts from, the values inside a block, too.

    Args:
        nodes: of a recording, in order.
        apart: values across which nothing merges (see :func:`kept_apart`).
    """
    split = {id(value) for value in apart}
    reader = {id(value): place for place, node in enumerate(nodes) for value in node.inputs}

    def follower(place: int, kind: type[Node]) -> int:
        value = nodes[place].output
        if value.consumers != 1 or id(value) in split:
            return -1
        reads = reader.get(id(value), -1)
        return reads if reads >= 0 and type(nodes[reads]) is kind else -1

    merged: set[int] = set()
    blocks: dict[int, tuple[int, int, int]] = {}
    for place, node in enumerate(nodes):
        if not node.is_linear or place in merged:
            continue
        norm = -1 if type(node) is BatchNorm else follower(place, BatchNorm)
        if norm >= 0 and not can_merge(cast(LinearNode, node), cast(BatchNorm, nodes[norm])):
            norm = -1
        relu = follower(max(place, norm), Relu)
        merged |= {place, norm, relu}
        blocks[max(place, norm, relu)] = (place, norm, relu)
    return [blocks.get(place, (place,)) for place in range(len(nodes)) if place in blocks or place not in merged]


def fused(nodes: Sequence[Node], apart: Collection[Value]) -> list[Node]:
    """The nodes in order as blocks, ``apart`` as for :func:`plan_blocks`."""
    return make_blocks(nodes, plan_blocks(nodes, apart))


def make_blocks(nodes: Sequence[Node], plan: Plan) -> list[Node]:
    """The nodes in order, every linear one inside a :class:`Block`."""
    found: list[Node] = []
    for places in plan:
        if len(places) == 1:
            found.append(nodes[places[0]])
        else:
            linear, norm, relu = (None if place < 0 else nodes[place] for place in places)
            found.append(Block(cast(LinearNode, linear), cast("BatchNorm | None", norm), cast("Relu | None", relu)))
    return found


def kept_apart(nodes: Sequence[Node], composite: Composite, names: dict[int, str]) -> list[Value]:
    """The inputs of those batch norms and ReLUs that do not merge into the layer ahead, as the composite names them for another rule."""
    roots: dict[int, Node] = {}  # a value -> the layer that it belongs to
    found = []
    for node in nodes:
        root = roots.get(id(node.input)) if isinstance(node, (BatchNorm, Relu)) else None
        if root is not None and separates(composite, node, root, names):
            found.append(node.input)
            root = None
        if root is not None or node.is_linear:
            roots[id(node.output)] = root or node
    return found


def separates(composite: Composite, node: Node, root: Node, names: dict[int, str]) -> bool:
    """Whether a composite names a batch norm or ReLU for another rule than that of ``root``, the layer that it would merge with."""
    name = names.get(id(node.module), "")
    if name not in composite.layers:
        return False
    layer = composite.first if root.input.behind_input else None
    return composite.rule_for(node, name, False) != (
        layer or composite.rule_for(root, names.get(id(root.module), ""), False)
    )
