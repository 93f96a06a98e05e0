"""Conditions: which channels of hidden layers relevance may pass, several conditions in one pass (concept relevance propagation)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..graph import Value
from .places import Place

Channels = int | Sequence[int] | Tensor
Condition = Mapping["str | Place", Channels]


@dataclass(frozen=True)
class Mask:
    """What the conditions of one pass keep at one value.

    Attributes:
        place, value: where it is.
        keep: factors of the multiplier, [T, B or 1, ...]: it broadcasts against [T, *value.shape].
        listed: of each condition, whether it names this value.
    """

    place: str | Place
    value: Value
    keep: Tensor
    listed: tuple[bool, ...]

    def apply(self, multiplier: Tensor) -> Tensor:
        """The multiplier (or relevance) at the value, one row for each condition: [R*B, ...] with R = 1 or T to [T*B, ...]."""
        if not multiplier.numel():
            return multiplier
        rows = multiplier.unflatten(0, (-1, self.value.shape[0]))
        return (rows * self.keep.to(multiplier.dtype)).flatten(0, 1)

    def part(self, begin: int, end: int) -> Mask:
        """That of some of the conditions."""
        return replace(self, keep=self.keep[begin:end], listed=self.listed[begin:end])


def masks_of(
    conditions: Sequence[Condition], values_at: Callable[[str | Place], tuple[Value, ...]], exclude_parallel: bool
) -> dict[int, Mask]:
    """The mask of every value that a condition names, by the value's id.

    Raises:
        TypeError, ValueError: channels that the layer has not, places of several tensors, places that exclude one another.
    """
    if isinstance(conditions, Mapping) or not isinstance(conditions, Sequence) or not conditions:
        raise ValueError(f"conditions: expected a list of dicts, one for each heatmap, got {conditions!r}")
    named: dict[int, tuple[Value, str | Place, dict[int, Tensor]]] = {}
    for number, condition in enumerate(conditions):
        if not isinstance(condition, Mapping):
            raise TypeError(f"conditions[{number}]: expected a dict from places to channels, got {condition!r}")
        values = []
        for place, channels in condition.items():
            found = values_at(place)
            if len(found) != 1:
                raise ValueError(f"conditions: {place!r} has {len(found)} tensors; name a place of one")
            value = found[0]
            kept = named.setdefault(id(value), (value, place, {}))[2]
            if number in kept:
                raise ValueError(f"conditions[{number}]: {place!r} is named twice, under another name")
            kept[number] = _kept(channels, value, place)
            values.append((place, value))
        if exclude_parallel:
            _refuse_parallel(values)
    masks = {}
    for key, (value, place, rows) in named.items():
        ones = torch.ones((1,) * len(value.shape), dtype=value.dtype, device=next(iter(rows.values())).device)
        keep = torch.stack(torch.broadcast_tensors(*(rows.get(number, ones) for number in range(len(conditions)))))
        masks[key] = Mask(place, value, keep, tuple(number in rows for number in range(len(conditions))))
    return masks


def _kept(channels: Channels, value: Value, place: str | Place) -> Tensor:
    """What one condition keeps of a value, as factors that broadcast against it, with all its dimensions."""
    shape, device = value.shape, value.form().device
    if isinstance(channels, Tensor) and (channels.dtype == torch.bool or channels.is_floating_point()):
        missing = len(shape) - channels.dim()
        mask = channels.to(device=device, dtype=value.dtype).reshape((1,) * max(0, missing) + channels.shape)
        if missing < 0 or any(m not in (1, n) for m, n in zip(mask.shape, shape, strict=True)):
            raise ValueError(
                f"conditions: the mask of {place!r} has shape {tuple(channels.shape)}, which does not broadcast against the layer's "
                f"{tuple(shape)}"
            )
        return mask
    if len(shape) < 2:
        raise ValueError(f"conditions: {place!r} has no channels, its shape is {tuple(shape)}; give a mask")
    listed = channels.tolist() if isinstance(channels, Tensor) else channels
    numbers = [listed] if isinstance(listed, int) else list(listed)
    for channel in numbers:
        if not isinstance(channel, int) or isinstance(channel, bool) or not 0 <= channel < shape[1]:
            raise ValueError(
                f"conditions: {place!r} has channels 0 to {shape[1] - 1} (dimension 1 of {tuple(shape)}), got {channel!r}; a bool or "
                "float tensor is a mask"
            )
    channel_mask = torch.zeros(shape[1], dtype=value.dtype, device=device)
    channel_mask[numbers] = 1.0
    return channel_mask.view(1, -1, *(1,) * (len(shape) - 2))


def _refuse_parallel(places: list[tuple[str | Place, Value]]) -> None:
    """Refuse a condition on layers of which none feeds the other: each would exclude the other's relevance."""
    for index, (place, value) in enumerate(places):
        for other_place, other in places[index + 1 :]:
            if not feeds(value, other) and not feeds(other, value):
                raise ValueError(
                    f"conditions: {place!r} and {other_place!r} stand in parallel branches, which exclude one another; name one of "
                    "them, or pass exclude_parallel=False"
                )


def feeds(source: Value, value: Value) -> bool:
    """Whether ``value`` was made from ``source``."""
    pending, seen = [value], {id(value)}
    while pending:
        current = pending.pop()
        if current is source:
            return True
        for read in () if current.producer is None else current.producer.inputs:
            if id(read) not in seen:
                seen.add(id(read))
                pending.append(read)
    return False
