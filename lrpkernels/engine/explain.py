"""What is asked of a recording, carried out: seeds, walks over groups of targets, and the shape of what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import UnusedInputError
from ..graph import Value
from ..layers import Block
from ..rules import Composite
from . import recompute
from .assignment import Planned, assign
from .conditions import Condition, Mask, masks_of
from .fusion import Fuse
from .places import Place, values_at
from .propagate import Seeds, Walk, propagate
from .recorder import Recording
from .target import Target, multiplier_of, select_logits, start

Start = Tensor | Mapping["str | Place", Tensor]


@dataclass(frozen=True)
class Question:
    """What is explained and how: the arguments of :meth:`lrpkernels.tape.Tape.relevance`.

    Attributes:
        at: places whose relevance is requested; None: only that of the inputs is returned.
        pick: picks the logits out of the model's output.
        memory_budget: rough limit in bytes for the multipliers of one walk.
        release: let go of forward values behind the (last) walk.
        to_input: False: the pass ends at the places of ``at``.
    """

    target: Target
    composite: Composite
    at: Sequence[str | Place] | None
    pick: Callable[[Any], Tensor] | None
    start: Start | None
    conditions: Sequence[Condition] | None
    exclude_parallel: bool
    memory_budget: int | None
    release: bool
    to_input: bool = True


def relevance(recording: Recording, fuse: Fuse, output: Any, asked: Question) -> Any:
    """See :meth:`lrpkernels.tape.Tape.relevance`.

    Args:
        recording: a finished one.
        fuse: the recorded nodes as blocks.
        output: what the model returned.
        asked: the question.
    """

    def at_place(place: str | Place) -> tuple[Value, ...]:
        return values_at(recording.model, recording.calls_of, place)

    if isinstance(asked.at, (str, Place)):
        raise TypeError(f"at: expected a list of places, got {asked.at!r}; write [{asked.at!r}]")
    if not (asked.to_input or asked.at):
        raise ValueError(f"to_input: False needs places where the pass ends, got at={asked.at!r}; write at=[NAME, ...]")
    hidden = {place: at_place(place) for place in asked.at or ()}
    wanted = [v for values in hidden.values() for v in values]
    through = recompute.propagate if recording.recomputes else propagate
    device = recording.inputs[0].device
    with torch.autocast(device.type, enabled=False):
        seeds, targets = _seeds(recording, output, asked, at_place)
        masks: dict[int, Mask] = {}
        if asked.conditions is not None:
            masks = masks_of(asked.conditions, at_place, asked.exclude_parallel)
            if targets not in (None, len(asked.conditions)):
                raise ValueError(
                    f"conditions: {len(asked.conditions)} conditions with {targets} targets; give one target for all, or one for each"
                )
            targets = len(asked.conditions)
        if seeds[0][1].shape[0] == 0 and seeds[0][0].shape[0] == 0:
            return _answer(recording, asked, hidden, lambda value: _of_nothing(value, seeds[0][0].tensor, targets))
        groups = _groups(recording, targets, asked.memory_budget)
        walks = []
        for begin, end in groups:
            planned = assign(recording, fuse, asked.composite)
            _refuse_inside(recording, planned, hidden)
            part = [
                (v, g if g.shape[0] == v.shape[0] else g.unflatten(0, (targets, -1))[begin:end].flatten(0, 1))
                for v, g in seeds
            ]
            walk = Walk(
                planned, wanted, through, {key: mask.part(begin, end) for key, mask in masks.items()}, asked.exclude_parallel,
                asked.composite.multiply_by_inputs, asked.to_input,
            )  # fmt: skip
            if recording.recomputes and not recording.reads_again:
                recording.reads_again = any(recompute.runs_again(node, rule) for node, rule in planned)
            last = asked.release and not recording.reads_again and end == groups[-1][1]
            if last:
                recording.nodes = []
            walks.append((walk.run(part, recording.input_values, last), end - begin))
    if all(found[id(v)] is None for found, _ in walks for v in (recording.input_values if asked.to_input else wanted)):
        name = type(recording.model).__name__
        where = "its input" if asked.to_input else ", ".join(map(repr, hidden))
        raise UnusedInputError(f"{name}: no relevance reaches {where}; the output does not depend on it")

    def shaped(value: Value) -> Tensor:
        if targets is None and walks[0][0][id(value)] is not None:
            return walks[0][0][id(value)]  # type: ignore[return-value]
        parts = [_rows(found[id(value)], value, rows, device) for found, rows in walks]
        joined = parts[0] if len(parts) == 1 else torch.cat(parts)
        return joined[0] if targets is None else joined.movedim(0, 1)

    return _answer(recording, asked, hidden, shaped)


def _answer(
    recording: Recording,
    asked: Question,
    hidden: Mapping[str | Place, tuple[Value, ...]],
    shaped: Callable[[Value], Tensor],
) -> Any:
    """What is returned, of the relevance at each value."""

    def maps(values: tuple[Value, ...]) -> Any:
        made = tuple(shaped(value) for value in values)
        return made[0] if len(made) == 1 else made

    if not asked.to_input:
        return {place: maps(values) for place, values in hidden.items()}
    inputs = recording.input_values
    heatmap = maps(inputs) if recording.names is None else dict(zip(recording.names, map(shaped, inputs), strict=True))
    return (
        heatmap if asked.at is None else {"input": heatmap, **{place: maps(values) for place, values in hidden.items()}}
    )


def _of_nothing(value: Value, explained: Tensor, targets: int | None) -> Tensor:
    """The relevance of no images: a map without elements, which autograd knows how to differentiate."""
    shape = value.shape if targets is None else (0, targets, *value.shape[1:])
    return (explained.sum() * 0).to(value.dtype).expand(shape)


def _seeds(
    recording: Recording, output: Any, asked: Question, at_place: Callable[[str | Place], tuple[Value, ...]]
) -> tuple[Seeds, int | None]:
    """The multipliers that the pass starts from, and how many targets they carry (None: a single one, without a dimension)."""
    if isinstance(asked.start, Mapping):
        if asked.target is not None or not asked.start:
            raise ValueError("start: expected relevance at one place or more, and no target beside it")
        found = []
        for place, relevance in asked.start.items():
            values = at_place(place)
            if len(values) != 1:
                raise ValueError(f"start: {place!r} has {len(values)} tensors; name a place of one")
            found.append((values[0], *multiplier_of(relevance, values[0].tensor, repr(place))))
        counts = {targets for _, _, targets in found}
        if len(counts) > 1:
            raise ValueError(f"start: the relevances carry different numbers of targets: {sorted(map(str, counts))}")
        return [(value, seed) for value, seed, _ in found], counts.pop()
    logits = select_logits(output, asked.pick)
    value = recording.value(logits)
    if value is None:
        name = type(recording.model).__name__
        raise UnusedInputError(f"{name}: its output does not depend on its input through recorded operations")
    if asked.start is None:
        seed, targets = start(asked.target, logits)
    elif asked.target is not None:
        raise ValueError("start: relevance to start from takes the place of a target; give one of the two")
    else:
        seed, targets = multiplier_of(asked.start, logits, "the output")
    return [(value, seed)], targets


def _rows(relevance: Tensor | None, value: Value, rows: int, device: torch.device) -> Tensor:
    """What a walk has found at a value, as [targets of the walk, *shape of the value]; nothing arrived: zeros."""
    shape = (rows, *value.shape)
    if relevance is None:
        dtype = value.dtype if value.dtype.is_floating_point else torch.get_default_dtype()
        return torch.zeros(shape, dtype=dtype, device=device)
    if relevance.shape[0] == rows * value.shape[0]:
        return relevance.unflatten(0, shape[:2])
    return relevance.unsqueeze(0).expand(shape)  # the conditions part ahead of this value


def _refuse_inside(recording: Recording, planned: Planned, hidden: Mapping[str | Place, tuple[Value, ...]]) -> None:
    """Refuse places between a convolution and its batch norm where the block's rule knows nothing of them."""
    inside = {
        id(node.linear.output): (node, node.norm, rule)
        for node, rule in (planned if hidden else ())
        if isinstance(node, Block) and node.norm is not None and rule.yields_relevance
    }
    for place, values in hidden.items():
        for node, norm, rule in (inside[id(v)] for v in values if id(v) in inside):
            remedy = recording.module_path(norm.module or recording.model)
            raise ValueError(
                f"at: {place!r} lies inside {node.label()}, which {type(rule).__name__} takes as one layer from its output to the model's "
                f"input, so no relevance is defined there; ask for the batch norm's output, {remedy!r}"
            )


def _groups(recording: Recording, targets: int | None, budget: int | None) -> list[tuple[int, int]]:
    """The targets in groups whose multipliers fit the budget: about four of the largest value's size are alive at a time."""
    if targets is None or budget is None:
        return [(0, targets or 1)]
    if budget <= 0:
        raise ValueError(f"memory_budget must be a positive number of bytes, got {budget!r}")
    largest = max(value.shape.numel() * value.dtype.itemsize for node in recording.nodes for value in node.outputs)
    together = max(1, min(targets, budget // (4 * largest)))
    return [(begin, min(begin + together, targets)) for begin in range(0, targets, together)]
