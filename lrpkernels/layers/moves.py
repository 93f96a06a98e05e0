"""Data movement that knows its own way back: permutations, rolled axes, parts of a tensor, padding. Images stay apart in all of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule

Index = tuple[Any, ...]


class _Moved(Node, ABC):
    """Base: the multipliers, and relevance itself, go back where the data came from."""

    kind = "movement"
    sees_through = True
    reads_inputs = reads_outputs = False

    @abstractmethod
    def back(self, parts: Arrived) -> Tensor:
        """What arrived at the outputs, at the input."""

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (self.back(multipliers),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (self.back(relevances),)


class Permutation(_Moved):
    """Dimensions in another order, the first in its place."""

    def __init__(self, input: Value, dims: tuple[int, ...]) -> None:
        super().__init__(input)
        self._dims = dims
        self._inverse = sorted(range(len(dims)), key=dims.__getitem__)

    def back(self, parts: Arrived) -> Tensor:
        return parts[0].permute(self._inverse)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None if given[0] is None else given[0].permute(self._dims)]


class Roll(_Moved):
    """Elements shifted along dimensions, those at the end to the front."""

    def __init__(self, input: Value, shifts: tuple[int, ...], dims: tuple[int, ...]) -> None:
        super().__init__(input)
        self._shifts, self._dims = shifts, dims

    def back(self, parts: Arrived) -> Tensor:
        return torch.roll(parts[0], [-shift for shift in self._shifts], self._dims)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None if given[0] is None else torch.roll(given[0], self._shifts, self._dims)]


class Selection(_Moved):
    """Parts of a tensor, one for each output, that do not overlap.

    Args:
        indices: of each part: whole numbers, slices and None, the first a whole slice.
    """

    def __init__(self, input: Value, indices: Sequence[Index]) -> None:
        super().__init__(input)
        self._indices = indices

    def back(self, parts: Arrived) -> Tensor:
        return functional.unselect(parts, self._indices, self.input.shape[1:])

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        return [None if given[0] is None else given[0][index] for index in self._indices]


class Padding(_Moved):
    """Constants around a tensor.

    Args:
        pads: as F.pad takes them, none below 0.
    """

    def __init__(self, input: Value, pads: Sequence[int]) -> None:
        super().__init__(input)
        self._pads = pads
        ahead = dict(zip(range(len(input.shape) - 1, -1, -1), pads[::2], strict=False))
        self._inside = tuple(
            slice(ahead[d], ahead[d] + n) if d in ahead else slice(None) for d, n in enumerate(input.shape)
        )

    def back(self, parts: Arrived) -> Tensor:
        return parts[0][self._inside]

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        mark = self.input.form().new_ones(self.input.shape) if given[0] is None else given[0]
        return [F.pad(mark, list(self._pads))]


# -- which of these a call is ---------------------------------------------------------------------------------------------------------

_PERMUTES = {
    torch.permute, Tensor.permute, torch.transpose, Tensor.transpose, Tensor.t, torch.t, torch.swapaxes, Tensor.swapaxes, torch.movedim,
    Tensor.movedim, Tensor.swapdims, torch.swapdims, torch.moveaxis, Tensor.moveaxis,
    *(getattr(Tensor, name).__get__ for name in ("T", "mT")),
}  # fmt: skip
_SPLITS = {torch.chunk, Tensor.chunk, torch.split, Tensor.split, torch.tensor_split, Tensor.tensor_split}
_UNBINDS = {torch.unbind, Tensor.unbind}


def moved(value: Value, func: Any, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> Node | None:
    """The node of a call that read one recorded tensor as its first argument; None: it is of another form.

    Args:
        value: what was read.
        func, args, kwargs: the call.
        outputs: what it made.
    """
    if not value.shape or value.dtype.is_complex or any(out.dtype != value.dtype for out in outputs):
        return None
    if func in _PERMUTES:
        dims = _order(func, len(value.shape), args[1:], kwargs)
        return None if dims is None or dims[0] != 0 else Permutation(value, dims)
    if func in _SPLITS or func in _UNBINDS:
        return _pieces(value, func in _UNBINDS, args, kwargs, outputs)
    if func is Tensor.__getitem__:
        index = _basic(args[1], len(value.shape))
        return None if index is None else Selection(value, [index])
    if func in (torch.roll, Tensor.roll):
        return _roll(value, *args[1:], **kwargs)
    if func is F.pad:
        return _padding(value, *args[1:], **kwargs)
    return None


def _order(func: Any, n: int, args: Any, kwargs: Any) -> tuple[int, ...] | None:
    """The dimension that each dimension of the result was."""
    flat = tuple(tuple(part) if isinstance(part, (list, tuple)) else part for part in args)
    try:
        return _order_of(func, n, flat, tuple(kwargs.items()))
    except TypeError:  # lists among the keywords, or the tensor itself
        return None


@lru_cache(1024)
def _order_of(func: Any, n: int, args: tuple[Any, ...], kwargs: tuple[tuple[str, Any], ...]) -> tuple[int, ...]:
    probe = torch.empty(tuple(range(1, n + 1)), device="meta")  # the sizes are the names of the dimensions
    made: Tensor = func(probe, *args, **dict(kwargs))
    return tuple(size - 1 for size in made.shape)


def _pieces(value: Value, single: bool, args: Any, kwargs: Any, outputs: Sequence[Tensor]) -> Node | None:
    """Parts along one dimension, one after the other."""
    given = kwargs.get("dim", args[2 - single] if len(args) > 2 - single else 0)
    if type(given) is not int or given % len(value.shape) == 0:
        return None
    dim, start, indices = given % len(value.shape), 0, []
    for out in outputs:
        length = 1 if single else out.shape[dim]
        indices.append((*(slice(None),) * dim, start if single else slice(start, start + length)))
        start += length
    return Selection(value, indices) if start == value.shape[dim] else None


def _basic(index: Any, n: int) -> Index | None:
    """An index by whole numbers and slices that leaves all images, with as many slices as "..." stands for."""
    parts = index if isinstance(index, tuple) else (index,)
    for part in parts:
        numbers = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
        if any(number is not None and number is not Ellipsis and type(number) is not int for number in numbers):
            return None
    places = [place for place, part in enumerate(parts) if part is Ellipsis]
    if len(places) > 1:
        return None
    if places:
        read = sum(part is not None and part is not Ellipsis for part in parts)
        parts = (*parts[: places[0]], *(slice(None),) * (n - read), *parts[places[0] + 1 :])
    return parts if parts and parts[0] == slice(None) else None


def _roll(rolled: Value, shifts: Any, dims: Any = ()) -> Node | None:
    shifts, dims = (tuple(part) if isinstance(part, (tuple, list)) else (part,) for part in (shifts, dims))
    plain = dims and all(type(number) is int for number in (*shifts, *dims))
    return Roll(rolled, shifts, dims) if plain and all(dim % len(rolled.shape) for dim in dims) else None


def _padding(padded: Value, pad: Any, mode: str = "constant", value: Any = None) -> Node | None:
    plain = mode == "constant" and all(type(number) is int and number >= 0 for number in pad)
    return Padding(padded, tuple(pad)) if plain and len(pad) // 2 < len(padded.shape) else None
