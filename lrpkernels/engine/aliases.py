"""In-place calls and views: a recording replaces each in-place call by its out-of-place form; later reads mean the result."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

from ..errors import InPlaceError
from ..layers.registry import Recorder


class Aliases:
    """Which tensor stands for which after the in-place calls of a recording.

    Attributes:
        replaced: what stands for a tensor that was changed, by the tensor's id.
    """

    def __init__(self) -> None:
        self.replaced: dict[int, Tensor] = {}
        self._views: dict[int, list[weakref.ref[Tensor]]] = {}
        self._outdated: set[int] = set()
        self._keep: list[Any] = []

    def forget(self) -> None:
        """The pass is over."""
        self.replaced.clear()
        self._views, self._outdated, self._keep = {}, set(), []

    def note_view(self, view: Tensor) -> None:
        """A view has been recorded."""
        self._views.setdefault(id(view._base), []).append(weakref.ref(view))

    def replace(self, rec: Recorder, stale: Tensor, fresh: Tensor) -> None:
        """An in-place call on ``stale`` was carried out as ``fresh``: later uses of ``stale`` mean ``fresh``.

        Raises:
            InPlaceError: ``stale`` is a part of another recorded tensor.
        """
        base = stale._base if stale._is_view() else None
        outdated = self._outdated
        for reference in self._views.get(id(stale if base is None else base), ()):
            view = reference()
            if view is not None and view is not stale:  # it still holds the old numbers
                key = id(view)
                outdated.add(key)
                self._keep.append(weakref.ref(view, lambda _, key=key: outdated.discard(key)))  # type: ignore[misc]
        if base is not None and rec.value(base) is not None:
            if stale.numel() != base.numel() or not stale.is_contiguous() or not base.is_contiguous():
                raise InPlaceError(
                    f"{rec.path()}: an in-place operation on a view changes part of a recorded tensor of shape {tuple(base.shape)}; "
                    "write the model's operation out of place (for example y = f(x[...]); torch.cat)"
                )
            self.rename(
                base, rec.call(torch.reshape, fresh, base.shape)
            )  # a mere reshape: the base changes as a whole, too
        self.rename(stale, fresh)

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        """Later uses of ``stale`` mean ``fresh``, which holds the same numbers or, after :meth:`replace`, newer ones."""
        replaced, key = self.replaced, id(stale)
        replaced[key] = fresh
        self._keep.append(weakref.ref(stale, lambda _: replaced.pop(key, None)))  # another tensor may get its id

    def current(self, rec: Recorder, tensor: Any) -> Any:
        """What ``tensor`` stands for after the in-place calls so far; anything but a tensor stands for itself.

        Raises:
            InPlaceError: it is a view of a tensor that was changed in place after the view had been taken.
        """
        while id(tensor) in self.replaced:
            tensor = self.replaced[id(tensor)]
        if id(tensor) in self._outdated:
            raise InPlaceError(
                f"{rec.path()}: a view of shape {tuple(tensor.shape)} is read after the tensor it looks at was changed in place; "
                "take the view after the change, or write the change out of place (y = f(x))"
            )
        return tensor
