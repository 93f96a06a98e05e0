"""Calls that write to tensors: in-place functions, assignments, ``out=``. Carried out on copies, so that what was read before stays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._ops import OpOverload, OpOverloadPacket

from ..errors import InPlaceError
from ..graph import Node
from ..layers.registry import Recorder, leaves, map_leaves, record_of, recorded
from ..layers.replayed import OnCopies, Unknown

_NAMES = frozenset(
    {"__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__"}
)
_NAMES |= {"__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__"}
_WRITE_NOTHING = frozenset({"requires_grad_", "share_memory_", "rename_"})


@lru_cache(4096)
def writes_to(func: Any) -> tuple[int, ...]:
    """Places of the positional arguments that ``func`` changes."""
    if isinstance(func, OpOverloadPacket) and func.overloads() == ["default"]:
        func = func.default
    if isinstance(func, OpOverload):
        arguments = enumerate(func._schema.arguments)
        return tuple(i for i, argument in arguments if argument.is_write and not argument.kwarg_only)
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__") and name not in _WRITE_NOTHING
    return (0,) if in_place or name in _NAMES else ()


def _out_of_place(func: Any) -> Any:
    """The function with a recorder that gives what ``func`` writes to its first argument, or None."""
    name = getattr(func, "__name__", "").partition(".")[0].removesuffix("_")
    for owner in (torch, Tensor, F):
        candidate = getattr(owner, name, None)
        if candidate is not None and record_of(candidate) is not None:
            return candidate
    return None


def on_copies(rec: Recorder, func: Any, places: tuple[int, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out a call without a recorder of its own that writes to its arguments at ``places``."""
    given = [t for place in places for t in leaves(args[place])]
    sibling = _out_of_place(func) if places == (0,) and len(given) == 1 else None
    if sibling is not None:
        made = rec.call(sibling, *args, **kwargs)
    else:
        run = OnCopies(func, places)

        def copied(leaf: Any) -> Any:  # what is written to again later
            return leaf.clone() if isinstance(leaf, Tensor) and rec.value(leaf) is None else leaf

        args = tuple(map_leaves(copied, part) if place in places else part for place, part in enumerate(args))
        made = run(*args, **kwargs)
        parts = leaves(made)
        if any(t.is_floating_point() or t.is_complex() for t in parts):
            rec.add(Unknown(recorded(rec, args, kwargs), run, args, kwargs, rec.path()), *parts)
    for stale, fresh in zip(given, leaves(made), strict=True):
        rec.overwrite(stale, fresh)
    return made


def into(rec: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Carry out a call with ``out=`` as one without, whose result ``out`` means from now on."""
    if not recorded(rec, args, kwargs):
        return func(*args, **kwargs)
    rest = {name: argument for name, argument in kwargs.items() if name != "out"}
    made = rec.call(func, *args, **rest)
    for target, fresh in zip(leaves(kwargs["out"]), leaves(made), strict=True):
        rec.overwrite(target, fresh)
    return made


def overwrite(rec: Recorder, target: Tensor, fresh: Tensor) -> None:
    """``target`` has been given the numbers of ``fresh``, in its own dtype.

    Raises:
        InPlaceError: they do not fit, and PyTorch would resize it.
    """
    if fresh.shape != target.shape and target.numel():
        raise InPlaceError(
            f"{rec.path()}: a result of shape {tuple(fresh.shape)} is written to a tensor of shape {tuple(target.shape)}, which "
            "resizes it; use the result that the function returns"
        )
    if fresh.dtype != target.dtype:
        fresh = rec.call(Tensor.to, fresh, target.dtype)
    if fresh is not target:
        rec.replace(target, fresh)


def constants_written(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """What a call that reads nothing recorded writes to; single whole numbers are counters, which nothing reads."""
    given = [leaf for place in writes_to(func) for leaf in leaves(args[place : place + 1])]
    return [leaf for leaf in given if isinstance(leaf, Tensor) and (leaf.dim() or leaf.is_floating_point())]


def before_writing(nodes: Sequence[Node], func: Any, args: Sequence[Any]) -> None:
    """A call that reads nothing recorded is about to run: operations that have read what it writes to keep the numbers they read."""
    for stale in constants_written(func, args):
        keep(nodes, stale)


def settle(target: Tensor, final: Tensor) -> None:
    """``target``, which outlives the pass, has been written to: give it its numbers."""
    if final is not target:
        with torch.no_grad():
            target.copy_(final)


def keep(nodes: Sequence[Node], stale: Tensor | None) -> None:
    """Operations that have read a tensor hold a copy of it from now on."""
    copies: list[Tensor] = []

    def copied(leaf: Any) -> Any:
        if leaf is not stale:
            return leaf
        copies.append(stale.detach().clone())
        return copies[-1]

    for node in nodes:
        for name, held in [*vars(node).items()]:
            if name not in ("inputs", "outputs", "module") and held is not None:
                changed = map_leaves(copied, held)
                if copies:
                    setattr(node, name, changed)
                    copies.clear()
