"""In-place calls and views: a recording replaces each in-place call by its out-of-place form; later reads mean the result."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InPlaceError
from ..layers.registry import NO_TENSORS, Recorder, holds_tensors, recorded
from ..layers.shapes import Movement


class _Place(NamedTuple):
    """Where a view stands in its base, and how it reads what is there.

    Attributes:
        shape, strides: the view's.
        offset: from the base's first number, in real numbers.
        widths: real numbers per element of view and base.
        conjugated, negated: whether it reads them so.
    """

    shape: torch.Size
    strides: tuple[int, ...]
    offset: int
    widths: tuple[int, int]
    conjugated: bool
    negated: bool

    @classmethod
    def of(cls, rec: Recorder, view: Tensor, base: Tensor) -> _Place:
        """The place of a view.

        Raises:
            InPlaceError: it reads the bits of the base as another type of number.
        """
        if view.dtype not in (base.dtype, base.dtype.to_complex(), base.dtype.to_real()):
            raise InPlaceError(
                f"{rec.path()}: a tensor of {base.dtype} and a view of it as {view.dtype} are changed and read in turn; expected views "
                "of the same type; use the results that the functions return"
            )
        widths = 1 + view.is_complex(), 1 + base.is_complex()
        offset = int(view.storage_offset() * widths[0] - base.storage_offset() * widths[1])
        return cls(view.shape, view.stride(), offset, widths, view.is_conj(), view.is_neg())

    @property
    def is_plain(self) -> bool:
        return self.widths[0] == self.widths[1] and not self.conjugated and not self.negated

    def within(self, whole: Tensor) -> Tensor:
        """The view, of another tensor laid out as the base is."""
        shape, strides, (width, base_width) = self.shape, self.strides, self.widths
        reals = torch.view_as_real(whole) if base_width > width else whole
        if width > base_width:
            shape, strides = (*shape, 2), (*(2 * stride for stride in strides), 1)  # type: ignore[assignment]
        offset = self.offset // 2 if width == base_width == 2 else self.offset
        part = reals.as_strided(shape, strides, reals.storage_offset() + offset)
        part = torch.view_as_complex(part) if width > base_width else part
        part = part.conj() if self.conjugated else part
        return torch._neg_view(part) if self.negated else part


class Aliases:
    """Which tensor stands for which after the in-place calls of a recording.

    Attributes:
        replaced: what stands for a tensor that was changed, by the tensor's id.
        outside: tensors that were changed without having been recorded (buffers, and what the model made for itself).
    """

    def __init__(self) -> None:
        self.replaced: dict[int, Tensor] = {}
        self.outside: list[weakref.ref[Tensor]] = []
        # What the memory of a tensor holds now, by its id: views taken before the change are made anew from it when they are read.
        self._contents: dict[int, Tensor] = {}
        self._keep: list[Any] = []

    def forget(self) -> None:
        """The pass is over."""
        self.replaced.clear()
        self._contents.clear()
        self.outside, self._keep = [], []

    def replace(self, rec: Recorder, stale: Tensor, fresh: Tensor) -> None:
        """An in-place call on ``stale`` was carried out as ``fresh``: later uses of ``stale``, and of its views, mean ``fresh``."""
        base = stale._base if stale._is_view() else None
        if rec.value(stale) is None:
            self.outside.append(weakref.ref(stale if base is None else base))
        elif base is not None and rec.value(base) is None and id(base) not in self._contents:
            base = None  # a part of a tensor from outside, of which the model sees no more
        if base is None:
            self._note(stale, fresh)
            return
        place = _Place.of(rec, stale, base)
        if place.is_plain and stale.numel() == base.numel() and all(t.is_contiguous() for t in (stale, base, fresh)):
            self._note(
                base, rec.call(torch.reshape, fresh, base.shape)
            )  # a mere reshape: the base changes as a whole, too
            self.rename(stale, fresh)
            return
        changed = _moved(rec, partial(_with_part, place=place), self._whole(rec, base), fresh)
        self._note(base, changed)
        part = _moved(rec, partial(_part, place=place), changed)
        self.rename(stale, part)
        self.rename(fresh, part)  # the model goes on with what the call returned, which is a part of the whole

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        """Later uses of ``stale`` mean ``fresh``, which holds the same numbers or, after :meth:`replace`, newer ones."""
        replaced, contents, key = self.replaced, self._contents, id(stale)
        replaced[key] = fresh

        def gone(_: Any) -> None:  # another tensor may get its id
            replaced.pop(key, None)
            contents.pop(key, None)

        self._keep.append(weakref.ref(stale, gone))

    def current(self, rec: Recorder, tensor: Any) -> Any:
        """What ``tensor`` stands for after the in-place calls so far; anything but a tensor stands for itself."""
        replaced, contents = self.replaced, self._contents
        while True:
            while id(tensor) in replaced:
                tensor = replaced[id(tensor)]
            if (
                not contents
                or not isinstance(tensor, Tensor)
                or not tensor._is_view()
                or id(tensor._base) not in contents
            ):
                return tensor
            base: Any = tensor._base
            part = _moved(rec, partial(_part, place=_Place.of(rec, tensor, base)), self._whole(rec, base))
            self.rename(tensor, part)
            tensor = part

    def changes(self, args: Iterable[Any]) -> bool:
        """Whether :meth:`current` may give another tensor for one of a call's arguments."""
        replaced, contents = self.replaced, self._contents
        for arg in args:
            kind = type(arg)
            if kind in NO_TENSORS:
                continue
            if kind is tuple or kind is list or kind is dict:
                if holds_tensors(arg) and self.changes(arg.values() if kind is dict else arg):
                    return True
            elif (
                id(arg) in replaced
                or isinstance(arg, (tuple, list, dict))
                or (contents and isinstance(arg, Tensor) and arg._is_view())
            ):
                return True
        return False

    def _note(self, stale: Tensor, fresh: Tensor) -> None:
        if id(stale) not in self.replaced:  # else it stands for a view of itself, after a change of shape
            self.rename(stale, fresh)
        self._contents[id(stale)] = fresh

    def _whole(self, rec: Recorder, base: Tensor) -> Tensor:
        """What the memory of ``base`` holds now, laid out as ``base`` is."""
        whole = base
        while id(whole) in self._contents:
            whole = self._contents[id(whole)]
        if whole.stride() != base.stride():
            laid_out = _moved(rec, partial(_laid_out, strides=base.stride()), whole)
            self._note(whole, laid_out)
            whole = laid_out
        return whole


def _moved(rec: Recorder, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    out = function(*tensors)
    inputs = recorded(rec, tensors)
    if inputs and rec.value(out) is None:
        rec.add(Movement(inputs, function, tensors, {}), out, nonnegative=all(v.nonnegative for v in inputs))
    return out


def _part(whole: Tensor, place: _Place) -> Tensor:
    return place.within(whole.resolve_conj().resolve_neg())


def _with_part(whole: Tensor, part: Tensor, place: _Place) -> Tensor:
    copy = _laid_out(whole, whole.stride())  # autograd's own as_strided_scatter has a wrong gradient
    place.within(copy).copy_(part)
    return copy


def _laid_out(tensor: Tensor, strides: Any) -> Tensor:
    empty = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return empty.copy_(tensor)
