"""The table from PyTorch functions to their recorders, and what a recorder asks of the recording it writes to.

Arguments and results nest tensors in lists, tuples and dicts. ``torch.utils._pytree`` would walk them, too, but its flattening leaves a
reference cycle with all leaves in it at every call: the tensors of a training step then stay until Python's garbage collector runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from ..graph import Node, Value


class Recorder(Protocol):
    """A forward pass that is being recorded (:class:`lrpkernels.engine.recorder.Recording`).

    Attributes:
        modules: those running, the innermost last.
        recomputes: whether less is saved for backward and recomputed there.
    """

    modules: list[nn.Module]
    recomputes: bool

    def value(self, tensor: object) -> Value | None:
        """The recorded value that ``tensor`` is, or None if it does not depend on the model's input."""

    def known(self, tensor: Tensor) -> Value:
        """:meth:`value` of a tensor that is known to be recorded."""

    def add(self, node: Node, *outputs: Tensor, nonnegative: bool = False) -> None:
        """Append ``node``; ``outputs`` are the tensors that it made."""

    def call(self, func: Any, *args: Any, **kwargs: Any) -> Any:
        """Run another function and record it, for recorders that take one call apart."""

    def unknown(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a function and record it as one without a rule."""

    def replace(self, stale: Tensor, fresh: Tensor) -> None:
        """An in-place call on ``stale`` was carried out as ``fresh``: later uses of ``stale`` mean ``fresh``."""

    def overwrite(self, target: Tensor, fresh: Tensor) -> None:
        """:meth:`replace`, where ``fresh`` may be of another dtype."""

    def rename(self, stale: Tensor, fresh: Tensor) -> None:
        """Later uses of ``stale`` mean ``fresh``, which holds the same numbers."""

    def path(self) -> str:
        """Dotted name of the module that is running."""

    def unsaved(self, value: Value) -> AbstractContextManager[Any]:
        """Operations in this context save a recipe in place of ``value``, if it has one."""

    def unsaved_if_cheap(self, value: Value) -> AbstractContextManager[Any]:
        """The same, if the recipe is cheap (:class:`lrpkernels.graph.Recipe`)."""

    def making(self, node: Node) -> AbstractContextManager[Any]:
        """The operation in this context, which saves nothing but its result, saves that result's recipe, if it has one."""


Record = Callable[[Recorder, Any, "tuple[Any, ...]", "dict[str, Any]"], Any]
_RECORDS: dict[Any, Record] = {}
F = TypeVar("F", bound=Record)


def records(*functions: Any) -> Callable[[F], F]:
    """Register the decorated function for PyTorch functions. It runs the function and adds its node to the recording."""

    def register(record: F) -> F:
        for function in functions:
            _RECORDS[function] = record
        return record

    return register


# What records a call of a function that reads a recorded tensor; None: nothing does.
record_of: Callable[[Any], Record | None] = _RECORDS.get


def bind(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str, **defaults: Any) -> list[Any]:
    """Arguments in the order of ``names``, from positional and keyword ones and the defaults (None if there is none)."""
    values = list(args)
    for name in names[len(args) :]:
        values.append(kwargs.get(name, defaults.get(name)))
    return values


def per_dimension(value: Any, n: int) -> tuple[int, ...]:
    """A size, or one size for each of ``n`` dimensions, as a tuple."""
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


def recorded(rec: Recorder, *trees: Any) -> list[Value]:
    """The recorded values among arguments, each once, in order."""
    return list({id(v): v for v in map(rec.value, leaves(trees)) if v is not None}.values())


NO_TENSORS = frozenset((int, float, bool, str, type(None)))


def holds_tensors(arguments: Iterable[Any]) -> bool:
    """Whether a list, tuple or dict among a call's arguments may hold a tensor: most are strides and sizes."""
    values = arguments.values() if isinstance(arguments, dict) else arguments
    return not NO_TENSORS.issuperset(map(type, values))


def leaves(tree: Any) -> list[Any]:
    """What is in lists, tuples and the values of dicts, at any depth, in order; anything else is a leaf."""
    found: list[Any] = []
    _collect(tree, found)
    return found


def _collect(tree: Any, found: list[Any]) -> None:
    if isinstance(tree, (tuple, list)) and not isinstance(tree, torch.Size):
        for part in tree:
            _collect(part, found)
    elif isinstance(tree, dict):
        for part in tree.values():
            _collect(part, found)
    else:
        found.append(tree)


def map_leaves(function: Callable[[Any], Any], tree: Any) -> Any:
    """``tree`` with every leaf replaced by ``function`` of it."""
    kind = type(tree)
    if kind is tuple or kind is list:
        return kind(map_leaves(function, part) for part in tree)
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind(*(map_leaves(function, part) for part in tree))
    if isinstance(tree, dict):
        return {key: map_leaves(function, part) for key, part in tree.items()}
    return function(tree)
