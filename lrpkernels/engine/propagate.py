"""The relevance pass: the recording walked backwards once, one differentiable relevance operation per block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedOperationError, UnusedInputError
from ..functional import Scaled, times
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Composite, Rule
from . import recompute
from .fusion import Fuse
from .recorder import Recording
from .target import Target, select_logits, start

Planned = list[tuple[Node, Rule]]
Through = Callable[[Node, Arrived, Rule], Multipliers]


class _Contributions:
    """What has arrived at each value so far: multipliers G, and relevance R behind a first-layer rule."""

    def __init__(self) -> None:
        self._parts: dict[int, list[Tensor]] = {}

    def add(self, value: Value, part: Tensor) -> None:
        if part.dtype != value.dtype:
            part = part.to(value.dtype)
        self._parts.setdefault(id(value), []).append(part)

    def pop(self, value: Value) -> Tensor | None:
        parts = self._parts.pop(id(value), None) if self._parts else None
        return None if parts is None else _sum(parts)

    def pop_scaled(self, value: Value) -> Scaled | None:
        """The contributions as at most two summands: blocks add the second in their own elementwise pass."""
        parts = self._parts.pop(id(value), None)
        if parts is None:
            return None
        return Scaled(parts[0]) if len(parts) == 1 else Scaled(_sum(parts[:-1]), parts[-1])


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


class Walk:
    """One walk over the planned operations, from the logits to the inputs.

    Args:
        planned: the fused operations in order, each with its rule; consumed on the way.
        wanted: values whose relevance is requested.
        through: :meth:`Node.propagate`, or a form of it that saves less.
    """

    def __init__(
        self,
        planned: Planned,
        wanted: Sequence[Value],
        through: Through,
    ) -> None:
        self._planned, self._through = planned, through
        self._wanted = {id(v) for v in wanted}
        self._multipliers, self._relevances = _Contributions(), _Contributions()
        self.found: dict[int, Tensor | None] = {id(v): None for v in wanted}

    def run(self, logits: Value, seed: Tensor, inputs: Sequence[Value], release: bool) -> dict[int, Tensor | None]:
        """Relevance at the inputs and the wanted values, by id of the value (None: nothing arrived).

        ``release`` lets go of every operation, and of the forward values that it made, behind the walk.
        """
        self._multipliers.add(logits, seed)
        node: Node | None = None
        try:
            while self._planned:
                node, rule = self._planned.pop()
                if node.kind == "block":
                    self._through_block(node, rule)
                else:
                    self._through_node(node, rule)
                if release:
                    node.release()
        finally:
            if release and node is not None:  # what an exception has left
                for left in (node, *(planned for planned, _ in self._planned)):
                    left.release()
        for v in inputs:
            self.found[id(v)] = _at_value(v, self._multipliers.pop(v), self._relevances.pop(v))
        return self.found

    def _through_node(self, node: Node, rule: Rule) -> None:
        arrived = [self._take(v) for v in node.outputs]
        behind = [self._relevances.pop(v) for v in node.outputs]
        if any(g is not None for g in arrived):
            _hand_on(node, self._through(node, arrived, rule), self._multipliers)
        if any(r is not None for r in behind):
            _hand_on(node, node.propagate_relevance(behind), self._relevances)

    def _through_block(self, block: Node, rule: Rule) -> None:
        value = block.output
        if self._relevances.pop(value) is not None:
            raise UnsupportedOperationError(
                f"{type(block.module).__name__} ({block.label()}): a rule that yields relevance itself (ZBox, Flat, WSquare, Pass) "
                "stands behind this layer; such rules belong at the layers that read the input"
            )
        if id(value) in self._wanted:
            total = self._take(value)
            g = None if total is None else Scaled(total)
        else:
            g = self._multipliers.pop_scaled(value)
        if g is not None:
            _hand_on(
                block,
                self._through(block, (g,), rule),
                self._relevances if rule.yields_relevance else self._multipliers,
            )

    def _take(self, value: Value) -> Tensor | None:
        """All multipliers that arrived at ``value``; its relevance is noted if it is requested."""
        total = self._multipliers.pop(value)
        if id(value) in self._wanted and total is not None:
            self.found[id(value)] = _at_value(value, total, None)
        return total


def _propagate(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
    return node.propagate(multipliers, rule)


def _at_value(value: Value, multiplier: Tensor | None, relevance: Tensor | None) -> Tensor | None:
    """R = a * G (+ R that a first-layer rule yielded)."""
    if multiplier is not None:
        product = times(multiplier, value.tensor)
        relevance = product if relevance is None else relevance + product
    return relevance


def _hand_on(node: Node, parts: Sequence[Tensor | None], contributions: _Contributions) -> None:
    for value, part in zip(node.inputs, parts, strict=True):
        if part is not None:
            contributions.add(value, part)


def with_rules(recording: Recording, blocks: list[Node], composite: Composite) -> Planned:
    """Each operation with its rule."""
    names: dict[int, str] = {}
    if composite.reads_names():  # walking over all modules costs as much as a small layer
        names = {id(module): name or "(model)" for name, module in recording.model.named_modules()}
    choose = composite.chooser()
    return [(node, choose(node, names.get(id(node.module), ""), _reads_input(node))) for node in blocks]


def _reads_input(node: Node) -> bool:
    return any(value.behind_input for value in node.inputs)


def relevance(
    recording: Recording,
    fuse: Fuse,
    output: Any,
    hidden: dict[str, Value] | None,
    *,
    target: Target,
    composite: Composite,
    pick: Callable[[Any], Tensor] | None,
    memory_budget: int | None,
    release: bool,
) -> Any:
    """See :meth:`lrpkernels.tape.Tape.relevance`.

    Args:
        recording: a finished one.
        fuse: the recorded nodes as blocks, given the values that must stay visible.
        output: what the model returned.
        hidden: values whose relevance is requested, by name; None: only that of the inputs is returned.
        target, composite, memory_budget: what is explained, and how.
        pick: picks the logits out of the model's output.
        release: let go of forward values behind the (last) walk.
    """
    logits = select_logits(output, pick)
    value = recording.value(logits)
    name = type(recording.model).__name__
    if value is None:
        raise UnusedInputError(f"{name}: its output does not depend on its input through recorded operations")
    wanted = list((hidden or {}).values())
    through = recompute.propagate if recording.recomputes else _propagate
    with torch.autocast(logits.device.type, enabled=False):
        seed, targets = start(target, logits)
        if logits.shape[0] == 0:
            return _empty(recording, logits, targets, hidden)
        parts = [seed] if memory_budget is None or targets is None else _chunks(recording, seed, targets, memory_budget)
        walks = []
        for part in parts:
            walk = Walk(with_rules(recording, fuse(recording.nodes, (value, *wanted)), composite), wanted, through)
            last = release and part is parts[-1]
            if last:
                recording.nodes = []
            walks.append(walk.run(value, part, recording.input_values, last))
    found = {key: _joined([walk[key] for walk in walks]) for key in walks[0]}
    inputs = [found[id(v)] for v in recording.input_values]
    if all(r is None for r in inputs):
        raise UnusedInputError(f"{name}: no relevance reaches its input; the output does not depend on it")

    def shaped(relevance: Tensor | None, at_value: Value) -> Tensor:
        if relevance is None:
            batch = seed.shape[0] // logits.shape[0] * at_value.shape[0]
            relevance = torch.zeros((batch, *at_value.shape[1:]), dtype=at_value.dtype, device=seed.device)
        return relevance if targets is None else relevance.unflatten(0, (targets, -1)).movedim(0, 1)

    heatmaps = tuple(shaped(r, v) for r, v in zip(inputs, recording.input_values, strict=True))
    heatmap = heatmaps[0] if len(heatmaps) == 1 else heatmaps
    if hidden is None:
        return heatmap
    return {"input": heatmap, **{name: shaped(found[id(v)], v) for name, v in hidden.items()}}


def _empty(recording: Recording, logits: Tensor, targets: int | None, hidden: dict[str, Value] | None) -> Any:
    """What there is to say of no images: maps without elements, which autograd knows how to differentiate."""
    nothing = logits.sum() * 0

    def shaped(value: Value) -> Tensor:
        shape = value.shape if targets is None else (0, targets, *value.shape[1:])
        return nothing.to(value.dtype).expand(shape)

    heatmaps = tuple(map(shaped, recording.input_values))
    heatmap = heatmaps[0] if len(heatmaps) == 1 else heatmaps
    return heatmap if hidden is None else {"input": heatmap, **{name: shaped(v) for name, v in hidden.items()}}


def _chunks(recording: Recording, seed: Tensor, targets: int, budget: int) -> Sequence[Tensor]:
    """The targets' seeds in groups whose multipliers fit the budget: about four of the largest value's size are alive at a time."""
    if budget <= 0:
        raise ValueError(f"memory_budget must be a positive number of bytes, got {budget!r}")
    largest = max(value.shape.numel() * value.dtype.itemsize for node in recording.nodes for value in node.outputs)
    together = max(1, min(targets, budget // (4 * largest)))
    return seed.split(together * (seed.shape[0] // targets))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return None if not present else present[0] if len(present) == 1 else torch.cat(present)
