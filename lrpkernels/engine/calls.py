"""PyTorch calls as data: their arguments with numbered slots in place of the tensors of a pass, so that they can be run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..errors import UnsupportedOperationError
from ..layers.registry import leaves, map_leaves
from .recorder import Recording


def refuse(recording: Recording, reason: str) -> NoReturn:
    """This model cannot be run by its calls alone."""
    raise UnsupportedOperationError(f"static: {recording.path()}: {reason}; leave `static` out for this model")


class Slot:
    """Stands for a tensor of the pass in a call's arguments."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index


class Parts:
    """Stands for a dataclass."""

    def __init__(self, kind: type, parts: dict[str, Any]) -> None:
        self.kind, self.parts = kind, parts


def slots_of(template: Any) -> Iterator[int]:
    """The slots in a tree of arguments or results."""
    for leaf in leaves(template):
        if type(leaf) is Slot:
            yield leaf.index
        elif type(leaf) is Parts:
            yield from slots_of(leaf.parts)


def filled(template: Any, tensors: Sequence[Any]) -> Any:
    """The tree with tensors in place of its slots."""

    def fill(leaf: Any) -> Any:
        if type(leaf) is Slot:
            return tensors[leaf.index]
        return leaf.kind(**filled(leaf.parts, tensors)) if type(leaf) is Parts else leaf

    return map_leaves(fill, template)


class Call:
    """One PyTorch call of the model.

    Attributes:
        func, args, kwargs: the call, slots in place of the pass's tensors.
        module: the one that made it.
        grad: whether gradients were on.
        record: what records it; None: it reads no recorded tensor.
        results: slots of the tensors that it returns, None for anything else.
        whole: whether it was recorded as one node whose outputs are its results, with no other tensors in between.
        writes: whether it reads no recorded tensor and writes to constants.
        sizes: shapes of its results, if they may follow from the numbers of an index.
        drop: slots that no later call reads.
    """

    __slots__ = (
        "args",
        "drop",
        "func",
        "grad",
        "kwargs",
        "module",
        "nested",
        "record",
        "results",
        "sizes",
        "whole",
        "writes",
    )

    def __init__(self, func: Any, args: Any, kwargs: Any, module: nn.Module, grad: bool) -> None:
        self.func, self.args, self.kwargs, self.module, self.grad = func, args, kwargs, module, grad
        self.record: Any = None
        self.results: list[int | None] = []
        self.whole = False
        self.writes = False
        self.sizes: list[torch.Size] | None = None
        self.drop: tuple[int, ...] = ()
        # Most calls have their tensors at the top of the positional arguments.
        self.nested = len([*self.slots()]) != sum(type(argument) is Slot for argument in args)

    def filled(self, tensors: Sequence[Any]) -> tuple[Any, Any]:
        """The arguments in this pass, positional and keyword ones."""
        if self.nested:
            return filled(self.args, tensors), filled(self.kwargs, tensors)
        return tuple([tensors[a.index] if type(a) is Slot else a for a in self.args]), self.kwargs

    def keep(self, out: Any, tensors: list[Any]) -> None:
        """Puts what the call has returned into its slots."""
        if isinstance(out, Tensor):
            tensors[self.results[0]] = out  # type: ignore[index]
            return
        for index, leaf in zip(self.results, leaves(out), strict=True):
            if index is not None:
                tensors[index] = leaf

    def check_sizes(self, recording: Recording, out: Any) -> None:
        """The model may have read the sizes of the call's results, and gone another way with others."""
        now = [leaf.shape for leaf in leaves(out) if isinstance(leaf, Tensor)]
        if now != self.sizes:
            name, before = getattr(self.func, "__name__", str(self.func)), [tuple(shape) for shape in self.sizes or ()]
            sizes = f"{[tuple(shape) for shape in now]}, and {before} when the calls were noted"
            refuse(recording, f"{name}() gives tensors of shapes {sizes}; they follow from numbers")

    def slots(self) -> Iterator[int]:
        return slots_of((self.args, self.kwargs))
