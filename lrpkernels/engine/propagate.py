"""The relevance pass: the recording walked backwards once, one differentiable relevance operation per block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import UnusedInputError
from ..functional import Scaled, over_value, times
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Composite, Rule
from . import recompute
from .assignment import Planned, assign
from .fusion import Fuse
from .recorder import Recording
from .target import Target, select_logits, start

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
        times_values: False: what is found are the multipliers G, in place of R = a * G.
    """

    def __init__(
        self,
        planned: Planned,
        wanted: Sequence[Value],
        through: Through,
        times_values: bool = True,
    ) -> None:
        self._planned, self._through, self._times_values = planned, through, times_values
        self._wanted = {id(v) for v in wanted}
        self._multipliers, self._relevances = _Contributions(), _Contributions()
        self.found: dict[int, Tensor | None] = {id(v): None for v in wanted}

    def run(self, logits: Value, seed: Tensor, inputs: Sequence[Value], release: bool) -> dict[int, Tensor | None]:
        """Relevance at the inputs and the wanted values, by id of the value (None: nothing arrived).

        ``release`` lets go of every operation, and of the forward values that it made, behind the walk.
        """
        self._multipliers.add(logits, seed)
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
            for node, _ in self._planned if release else ():
                node.release()
        for v in inputs:
            self.found[id(v)] = self._at_value(v, self._multipliers.pop(v), self._relevances.pop(v))
        return self.found

    def _through_node(self, node: Node, rule: Rule) -> None:
        arrived = [self._take(v) for v in node.outputs]
        behind = [self._relevances.pop(v) for v in node.outputs]
        for v, r in zip(node.outputs, behind, strict=True):
            self._note(v, None, r)
        if any(g is not None for g in arrived):
            yields = rule.yields_relevance and node.family in rule.families
            parts = self._through(node, arrived, rule)
            _hand_on(node, parts, self._relevances if yields else self._multipliers)
        if any(r is not None for r in behind):
            self._relevance_through(node, behind, rule)

    def _relevance_through(self, node: Node, behind: Arrived, rule: Rule) -> None:
        """What a rule that yields relevance has left at the outputs: R follows the data, or is a multiplier again from here on."""
        parts = node.propagate_relevance(behind, rule)
        if parts is not None:
            _hand_on(node, parts, self._relevances)
            return
        pairs = zip(behind, node.outputs, strict=True)
        multipliers = [None if r is None else over_value(r, value.tensor) for r, value in pairs]
        _hand_on(node, self._through(node, multipliers, rule), self._multipliers)

    def _through_block(self, block: Node, rule: Rule) -> None:
        value = block.output
        contributions = self._relevances if rule.yields_relevance else self._multipliers
        behind = self._relevances.pop(value)
        if behind is not None:
            self._note(value, None, behind)
            parts = block.propagate_relevance((behind,), rule)
            assert parts is not None
            _hand_on(block, parts, contributions)
        if id(value) in self._wanted:
            total = self._take(value)
            g = None if total is None else Scaled(total)
        else:
            g = self._multipliers.pop_scaled(value)
        if g is not None:
            _hand_on(block, self._through(block, (g,), rule), contributions)

    def _take(self, value: Value) -> Tensor | None:
        """All multipliers that arrived at ``value``; its relevance is noted if it is requested."""
        total = self._multipliers.pop(value)
        self._note(value, total, None)
        return total

    def _note(self, value: Value, multiplier: Tensor | None, relevance: Tensor | None) -> None:
        """Relevance that has arrived at a value, if it is requested."""
        key = id(value)
        if key in self._wanted and not (multiplier is None and relevance is None):
            found, so_far = self._at_value(value, multiplier, relevance), self.found[key]
            self.found[key] = found if so_far is None or found is None else so_far + found

    def _at_value(self, value: Value, multiplier: Tensor | None, relevance: Tensor | None) -> Tensor | None:
        """R = a * G (+ R that a rule yielded)."""
        if multiplier is None or not self._times_values:
            return relevance if multiplier is None else multiplier
        product = times(multiplier, value.tensor)
        return product if relevance is None else relevance + product


def _propagate(node: Node, multipliers: Arrived, rule: Rule) -> Multipliers:
    return node.through(multipliers, rule)


def _hand_on(node: Node, parts: Sequence[Tensor | None], contributions: _Contributions) -> None:
    for value, part in zip(node.inputs, parts, strict=True):
        if part is not None:
            contributions.add(value, part)


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
        parts = [seed] if memory_budget is None or targets is None else _chunks(recording, seed, targets, memory_budget)
        walks = []
        for part in parts:
            planned = assign(recording, fuse, composite, (value, *wanted))
            walk = Walk(planned, wanted, through, composite.multiply_by_inputs)
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
