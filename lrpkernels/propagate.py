"""The relevance pass: the tape walked backwards once, one differentiable relevance operation per block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checkpoint import linear
from .composite import Composite, as_composite
from .errors import UnsupportedOperationError, UnusedInputError
from .fuse import Block, fuse, fusion
from .target import Target, select_logits, start

if TYPE_CHECKING:
    from .layers.base import Op
    from .rules import Rule
    from .tape import Tape, Value


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

    def pop_pair(self, value: Value) -> tuple[Tensor, Tensor | None] | None:
        """The contributions as at most two summands: blocks add the second in their own elementwise pass."""
        parts = self._parts.pop(id(value), None)
        if parts is None:
            return None
        return (parts[0], None) if len(parts) == 1 else (_sum(parts[:-1]), parts[-1])


def _sum(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def propagate(
    tape: Tape,
    target: Target,
    composite: Composite | Rule | None,
    at: Sequence[str] | None,
    output: Callable[[Any], Tensor] | None,
    memory_budget: int | None,
    release: bool,
) -> Any:
    """See :meth:`lrpkernels.tape.Tape.relevance`."""
    chosen = as_composite(composite)
    logits = select_logits(tape.output, output)
    value = tape.value(logits)
    if value is None:
        raise UnusedInputError(
            f"{type(tape.model).__name__}: its output does not depend on its input through recorded operations"
        )
    hidden = {name: tape.module_output(name) for name in at or ()}
    with torch.autocast(logits.device.type, enabled=False):
        seed, targets = start(target, logits)
        chunks = [seed] if memory_budget is None or targets is None else _chunks(tape, seed, targets, memory_budget)
        walks = [_walk(tape, value, part, chosen, hidden, release and part is chunks[-1]) for part in chunks]
    found = {key: _joined([walk[key] for walk in walks]) for key in walks[0]}
    inputs = [found[id(v)] for v in tape.input_values]
    if all(r is None for r in inputs):
        raise UnusedInputError(
            f"{type(tape.model).__name__}: no relevance reaches its input; the output does not depend on it"
        )

    def shaped(relevance: Tensor | None, at_value: Value) -> Tensor:
        if relevance is None:
            relevance = torch.zeros(
                (seed.shape[0] // logits.shape[0] * at_value.shape[0], *at_value.shape[1:]), dtype=at_value.dtype
            )
        return relevance if targets is None else relevance.unflatten(0, (targets, -1)).movedim(0, 1)

    heatmaps = tuple(shaped(r, v) for r, v in zip(inputs, tape.input_values, strict=True))
    heatmap = heatmaps[0] if len(heatmaps) == 1 else heatmaps
    if at is None:
        return heatmap
    return {"input": heatmap, **{name: shaped(found[id(v)], v) for name, v in hidden.items()}}


def _chunks(tape: Tape, seed: Tensor, targets: int, budget: int) -> Sequence[Tensor]:
    """The targets' seeds in groups whose multipliers fit the budget: about four of the largest value's size are alive at a time."""
    if budget <= 0:
        raise ValueError(f"memory_budget must be a positive number of bytes, got {budget!r}")
    largest = max(value.shape.numel() * value.dtype.itemsize for op in tape.ops for value in op.outputs)
    together = max(1, min(targets, budget // (4 * largest)))
    return seed.split(together * (seed.shape[0] // targets))


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return None if not present else present[0] if len(present) == 1 else torch.cat(present)


def plan(tape: Tape, composite: Composite, keep: Sequence[Value] = ()) -> list[tuple[Op, Rule]]:
    """The fused operations of a tape in order, each with its rule."""
    ops = fuse(tape.ops, fusion(tape.ops, keep)) if tape.trace is None else tape.trace.fused(tape, keep)
    names: dict[int, str] = {}
    if composite.reads_names():  # walking over all modules costs as much as a small layer
        names = {id(module): name or "(model)" for name, module in tape.model.named_modules()}
    choose = composite.chooser()
    return [(op, choose(op, names.get(id(op.module), ""), any(v.behind_input for v in op.inputs))) for op in ops]


def _walk(
    tape: Tape, logits: Value, seed: Tensor, composite: Composite, hidden: dict[str, Value], release: bool
) -> dict[int, Tensor | None]:
    """Relevance at the inputs and the hidden values, by id of the value (None: nothing arrived).

    With ``release`` every operation, and the forward values that it made, are let go behind the walk.
    """
    multipliers, relevances = _Contributions(), _Contributions()
    multipliers.add(logits, seed)
    wanted = {id(v) for v in hidden.values()}
    found: dict[int, Tensor | None] = {id(v): None for v in (*hidden.values(), *tape.input_values)}
    planned = plan(tape, composite, keep=(logits, *hidden.values()))
    release = release and not tape.checkpoint  # whose backward reads the values again
    if release:
        tape.ops, tape.released = [], True
    try:
        while planned:
            op, rule = planned.pop()
            if type(op) is Block:
                _through_block(op, rule, multipliers, relevances, wanted, found, tape.checkpoint)
            else:
                _through(op, rule, multipliers, relevances, wanted, found)
            if release:
                _release(op)
    finally:
        for op, _ in planned if release else ():
            _release(op)
    for v in tape.input_values:
        found[id(v)] = _at_value(v, multipliers.pop(v), relevances.pop(v))
    return found


def _release(op: Op) -> None:
    parts = (op.map, op.norm, op.relu) if type(op) is Block else (op,)
    for part in parts:
        if part is not None:
            for value in part.outputs:
                value.release()


def _through(
    op: Op,
    rule: Rule,
    multipliers: _Contributions,
    relevances: _Contributions,
    wanted: set[int],
    found: dict[int, Tensor | None],
) -> None:
    arrived = [_take(v, multipliers, relevances, wanted, found) for v in op.outputs]
    behind = [relevances.pop(v) for v in op.outputs]
    if any(g is not None for g in arrived):
        _hand_on(op, op.propagate(arrived, rule), multipliers)
    if behind[0] is not None:
        _hand_on(op, op.propagate_relevance(behind[0]), relevances)


def _through_block(
    block: Block,
    rule: Rule,
    multipliers: _Contributions,
    relevances: _Contributions,
    wanted: set[int],
    found: dict[int, Tensor | None],
    checkpointed: bool,
) -> None:
    value = block.output
    if relevances.pop(value) is not None:
        raise UnsupportedOperationError(
            f"{type(block.module).__name__} ({block.label()}): a rule that yields relevance itself (ZBox, Flat, WSquare, Pass) "
            "stands behind this layer; such rules belong at the layers that read the input"
        )
    if id(value) in wanted:
        total = _take(value, multipliers, relevances, wanted, found)
        pair: tuple[Tensor, Tensor | None] | None = None if total is None else (total, None)
    else:
        pair = multipliers.pop_pair(value)
    if pair is None:
        return
    result = linear(rule, block, pair) if checkpointed else rule.linear(block, pair)
    (relevances if rule.yields_relevance else multipliers).add(block.input, result)


def _take(
    value: Value,
    multipliers: _Contributions,
    relevances: _Contributions,
    wanted: set[int],
    found: dict[int, Tensor | None],
) -> Tensor | None:
    """All multipliers that arrived at ``value``; its relevance is noted if it was asked for."""
    total = multipliers.pop(value)
    if id(value) in wanted and total is not None:
        found[id(value)] = _at_value(value, total, None)
    return total


def _at_value(value: Value, multiplier: Tensor | None, relevance: Tensor | None) -> Tensor | None:
    """R = a * G (+ R that a first-layer rule yielded)."""
    if multiplier is not None:
        targets = multiplier.shape[0] // value.shape[0]
        product = (
            value.tensor * multiplier
            if targets == 1
            else (multiplier.unflatten(0, (targets, -1)) * value.tensor).flatten(0, 1)
        )
        relevance = product if relevance is None else relevance + product
    return relevance


def _hand_on(op: Op, parts: Sequence[Tensor | None], contributions: _Contributions) -> None:
    for value, part in zip(op.inputs, parts, strict=True):
        if part is not None:
            contributions.add(value, part)
