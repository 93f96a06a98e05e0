"""Operations without a rule of their own: replayed under autograd for their vector-Jacobian product."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ..errors import FallbackWarning, RelevanceError, UnsupportedOperationError
from ..graph import Arrived, Multipliers, Node, Value
from ..rules import Rule
from .registry import leaves, map_leaves


class Place:
    """Where an operation's input goes in its call."""

    def __init__(self, index: int) -> None:
        self.index = index


class Replayed(Node):
    """An operation kept as the call it was, so that it can be run again under autograd.

    A linear one (data movement, sums) is replayed on detached inputs: its vector-Jacobian product depends on the multiplier alone.
    """

    kind = "replayed"
    reads_outputs = False
    linear = True

    def __init__(self, inputs: Sequence[Value], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__(*inputs)
        self.func = func
        device = inputs[0].tensor.device.type
        self._autocast = (device, torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None
        places = {id(value.tensor): Place(index) for index, value in enumerate(inputs)}

        def held(leaf: Any) -> Any:
            place = places.get(id(leaf))
            if place is None and isinstance(leaf, Tensor) and leaf.is_inference():
                return leaf.clone()  # autograd cannot save what inference mode has made
            return leaf if place is None else place

        self._call = map_leaves(held, (args, kwargs))

    @property
    def name(self) -> str:
        name: str = getattr(self.func, "__name__", str(self.func))
        return self.func.__self__.__name__ if name == "__get__" else name  # of a property, such as x.real

    def _inputs(self) -> list[Tensor]:
        tensors = []
        for value in self.inputs:
            tensor = value.tensor
            if not (tensor.is_floating_point() or tensor.is_complex()):
                tensors.append(tensor)
            elif self.linear or not tensor.requires_grad:
                tensors.append(tensor.detach().requires_grad_())
            else:
                tensors.append(tensor.view_as(tensor))  # an alias: one input may have been made from another
        return tensors

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        args, kwargs = map_leaves(lambda leaf: tensors[leaf.index] if type(leaf) is Place else leaf, self._call)
        # The relevance pass itself runs without autocast; a function that mixed dtypes under it would fail here.
        autocast = nullcontext() if self._autocast is None else torch.autocast(*self._autocast, cache_enabled=False)
        with autocast:
            return [t for t in leaves(self.func(*args, **kwargs)) if isinstance(t, Tensor)]

    def _vjp(self, multipliers: Sequence[Tensor | None]) -> Multipliers:
        keep = torch.is_grad_enabled()
        with torch.enable_grad():
            tensors = self._inputs()
            results = self._run(tensors)
            pairs = [(y, g) for y, g in zip(results, multipliers, strict=True) if g is not None and y.requires_grad]
            if not pairs:
                return (None,) * len(self.inputs)
            ys = [y for y, _ in pairs]
            live = [i for i, tensor in enumerate(tensors) if tensor.requires_grad]
            wanted = [tensors[i] for i in live]
            targets = pairs[0][1].shape[0] // (
                ys[0].shape[0] if ys[0].dim() else 1
            )  # a number of the whole batch counts as one image
            rows = []
            for t in range(targets):
                part = [(g if targets == 1 else g.unflatten(0, (targets, -1))[t]).reshape(y.shape) for y, g in pairs]
                rows.append(
                    torch.autograd.grad(
                        ys, wanted, part, create_graph=keep, retain_graph=keep or targets > 1, allow_unused=True
                    )
                )
        parts: list[Tensor | None] = [None] * len(tensors)
        for i, column in zip(live, zip(*rows, strict=True), strict=True):
            if column[0] is not None:
                parts[i] = column[0] if targets == 1 else torch.cat(column)
        return tuple(parts)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return self._vjp(multipliers)

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return self._vjp(multipliers)


class Unknown(Replayed):
    """A function that no recorder knows. Smooth ones follow their vector-Jacobian product (gradient times input)."""

    kind = "unknown"
    reads_outputs = True
    linear = False

    def __init__(
        self, inputs: Sequence[Value], func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], path: str
    ) -> None:
        super().__init__(inputs, func, args, kwargs)
        self.path = path

    def label(self) -> str:
        return self.name

    def _run(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        results = super()._run(tensors)
        for value, result in zip(self.outputs, results, strict=True):
            if not _alike(value.tensor.detach(), result.detach()):
                raise UnsupportedOperationError(
                    f"{self.path}: {self.name} gives another result when it is run again (random numbers, or a state it keeps), so "
                    "its gradient cannot be taken; use it in evaluation mode, or a module of its own with known parts"
                )
        return results

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        try:
            result: Multipliers = self._vjp(multipliers)
        except RuntimeError as error:
            if isinstance(error, RelevanceError) or "derivative" not in str(error):
                raise
            result = (None,) * len(self.inputs)
        if all(g is None for g in result):
            raise UnsupportedOperationError(
                f"{self.path}: {self.name} is not differentiable, so no relevance can flow through it; detach its result if it is "
                "meant as a constant, or replace the function"
            )
        return result

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        if any(len(value.shape) == 0 for value in self.outputs):
            raise UnsupportedOperationError(
                f"{self.path}: {self.name} mixes the images of a batch into one number, which relevance cannot be followed through; "
                "reduce over other dimensions than the batch's"
            )
        result = self.gradient(multipliers, rule)
        warnings.warn(
            f"lrpkernels has no rule for {self.name} ({self.path}): its gradient is used, as in gradient times input",
            FallbackWarning,
            stacklevel=2,
        )
        return result


class OnCopies:
    """A function that writes to its arguments, run on copies of them, which it returns: nothing outside changes when it runs again.

    Args:
        func: the function.
        places: of the positional arguments that it writes to.
    """

    def __init__(self, func: Any, places: tuple[int, ...]) -> None:
        self.func, self.places = func, places
        self.__name__ = getattr(func, "__name__", str(func))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for place in self.places:
            given[place] = map_leaves(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, given[place])
        self.func(*given, **kwargs)
        written = [given[place] for place in self.places]
        return written[0] if len(written) == 1 else written


def _alike(recorded: Tensor, again: Tensor) -> bool:
    if recorded.shape != again.shape:
        return False
    return not (recorded.is_floating_point() or recorded.is_complex()) or torch.allclose(
        again, recorded, rtol=1e-3, atol=1e-5, equal_nan=True
    )
