"""In-place calls and views: a recording replaces each in-place call by its out-of-place form; later reads mean the result."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..layers.registry import Recorder, recorded
from ..layers.shapes import Movement


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
        if (stale.dtype, stale.numel()) == (base.dtype, base.numel()) and all(
            t.is_contiguous() for t in (stale, base, fresh)
        ):
            self._note(
                base, rec.call(torch.reshape, fresh, base.shape)
            )  # a mere reshape: the base changes as a whole, too
            self.rename(stale, fresh)
            return
        place = _place(stale, base)
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
            part = _moved(rec, partial(_part, place=_place(tensor, base)), self._whole(rec, base))
            self.rename(tensor, part)
            tensor = part

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


def _place(view: Tensor, base: Tensor) -> Any:
    """Where a view's numbers are among those of its base. A view may be of the real parts of a complex tensor: pairs are counted singly."""
    numbers = _real(view)
    return numbers.shape, numbers.stride(), numbers.storage_offset() - _real(base).storage_offset(), view.is_complex()


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _part(whole: Tensor, place: Any) -> Tensor:
    shape, strides, offset, is_complex = place
    numbers = _real(whole)
    part = numbers.as_strided(shape, strides, numbers.storage_offset() + offset)
    return torch.view_as_complex(part) if is_complex else part


def _with_part(whole: Tensor, part: Tensor, place: Any) -> Tensor:
    shape, strides, offset, _ = place
    copy = _laid_out(whole, whole.stride())  # autograd's own as_strided_scatter has a wrong gradient
    _real(copy).as_strided(shape, strides, offset).copy_(_real(part))
    return copy


def _laid_out(tensor: Tensor, strides: Any) -> Tensor:
    empty = torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device)
    return empty.copy_(tensor)
