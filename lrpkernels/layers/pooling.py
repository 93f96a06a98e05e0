"""Pooling layers. Max pooling: winner takes all. Average pooling: a linear map with constant weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import functional
from ..graph import Arrived, Multipliers, Node, Value, marks
from ..rules import Rule
from .registry import Recorder, bind, leaves, per_dimension, records


class MaxPool(Node):
    """Max pooling with the winners' positions.

    Attributes:
        arguments: of the sliding window in 2 or 3 dimensions; None for poolings known by their winners alone.
    """

    kind = "max_pool"
    sees_through = True
    reads_inputs = reads_outputs = frozenset({"pool"})

    def __init__(self, input: Value, indices: Tensor, arguments: tuple[Any, ...] | None) -> None:
        super().__init__(input)
        self.indices, self.arguments = indices, arguments

    def winner(self, multiplier: Tensor) -> Tensor:
        if self.arguments is None:
            return functional.scatter_winner(multiplier, self.indices, self.inputs[0].shape[2:])
        return functional.max_pool_winner(multiplier, self.indices, self.inputs[0].form(), self.arguments)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.max_pool(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers:
        return (self.winner(relevances[0]),)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        mark = given[0]
        if mark is None:
            return [None]
        mark, places = mark.expand(self.input.shape).flatten(2), self.indices.flatten(2).long()
        return [mark.gather(2, places).view(self.output.shape)]


class AveragePool(Node):
    """A parameter-free linear map with non-negative weights: average pooling, adaptive average pooling, mean over positions.

    Attributes:
        map: A, by PyTorch's function.
        windows: what ``functional.average_pool_transpose`` takes after the sizes; None: there is no kernel for this layer.
    """

    kind = "avg_pool"
    sees_through = True
    reads_inputs = reads_outputs = frozenset({"pool"})

    def __init__(self, input: Value, map: Callable[[Tensor], Tensor], windows: tuple[Any, ...] | None = None) -> None:
        super().__init__(input)
        self.map, self.windows = map, windows

    @property
    def is_nonnegative(self) -> bool:
        return self.input.nonnegative

    def apply(self, a: Tensor) -> Tensor:
        return self.map(a)

    def pull(self, s: Tensor) -> Tensor:
        return functional.average_pull(s, self.map, self.input.shape, self.windows)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.average_pool(self, multipliers[0]),)

    def propagate_relevance(self, relevances: Arrived, rule: Rule) -> Multipliers | None:
        if not self.input.behind_input:
            return None
        # Ahead of the first layer there is relevance where pixels are 0: the weights alone share it out, as data movement would.
        mark = marks(self.input)
        total = self.apply(torch.ones_like(self.input.form()[:1]) if mark is None else mark)
        pulled = self.pull(functional.over_value(relevances[0], total))
        return (pulled if mark is None else functional.times(pulled, mark),)

    def marks(self, given: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        mark = given[0]
        return [mark if mark is None else (self.apply(mark) != 0).to(mark.dtype)]


_MAX_POOLS: dict[Any, tuple[int, bool]] = {
    F.max_pool2d: (2, False),
    torch.max_pool2d: (2, False),
    F.max_pool2d_with_indices: (2, True),
    F.max_pool3d: (3, False),
    torch.max_pool3d: (3, False),
    F.max_pool3d_with_indices: (3, True),
}


@records(*_MAX_POOLS)
def _max_pool(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    spatial, wants_indices = _MAX_POOLS[func]
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    x, kernel, stride, padding, dilation, ceil_mode, return_indices = bind(
        args, kwargs, *names, padding=0, dilation=1, ceil_mode=False, return_indices=False
    )
    value = rec.value(x)
    if value is not None and x.dim() == spatial + 1:
        return _each_alone(rec, func, args, kwargs)
    if value is None or x.dim() != spatial + 2:
        return rec.unknown(func, args, kwargs)
    kernel = per_dimension(kernel, spatial)
    stride = kernel if stride is None or stride == [] else per_dimension(stride, spatial)
    arguments = (kernel, stride, per_dimension(padding, spatial), per_dimension(dilation, spatial), ceil_mode)
    out, indices = functional.max_pool(x, arguments) if spatial == 2 else F.max_pool3d_with_indices(x, *arguments)
    rec.add(MaxPool(value, indices, arguments), out, nonnegative=value.nonnegative)
    return (out, indices) if wants_indices or return_indices else out


_NAMED_WINNERS: dict[Any, Any] = {
    F.max_pool1d: F.max_pool1d_with_indices,
    torch.max_pool1d: F.max_pool1d_with_indices,
    F.adaptive_max_pool1d: F.adaptive_max_pool1d_with_indices,
    F.adaptive_max_pool2d: F.adaptive_max_pool2d_with_indices,
    F.adaptive_max_pool3d: F.adaptive_max_pool3d_with_indices,
    F.fractional_max_pool2d: F.fractional_max_pool2d_with_indices,
    F.fractional_max_pool3d: F.fractional_max_pool3d_with_indices,
}


@records(*_NAMED_WINNERS, *set(_NAMED_WINNERS.values()))
def _max_pool_by_winner(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Poolings whose random or adaptive windows are known only by their winners."""
    pool = _NAMED_WINNERS.get(func, func)
    spatial = int(pool.__name__.split("pool")[1][0])
    options = {k: v for k, v in kwargs.items() if k != "return_indices"}
    x = args[0] if args else kwargs["input"]
    value = rec.value(x)
    if value is not None and x.dim() == spatial + 1:
        return _each_alone(rec, func, args, kwargs)
    if value is None or x.dim() != spatial + 2:
        return rec.unknown(func, args, kwargs)
    out, indices = pool(*args, **options)
    rec.add(MaxPool(value, indices, None), out, nonnegative=value.nonnegative)
    return (out, indices) if pool is func or kwargs.get("return_indices") else out


def _each_alone(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Max pooling without a batch dimension: every channel as an image of its own, which gives the same numbers."""
    x = args[0] if args else kwargs["input"]
    options = {name: option for name, option in kwargs.items() if name != "input"}
    out = rec.call(func, rec.call(torch.unsqueeze, x, 1), *args[1:], **options)
    parts = [rec.call(torch.squeeze, part, 1) for part in leaves(out)]
    return tuple(parts) if isinstance(out, tuple) else parts[0]


_AVERAGE_POOLS: dict[Any, int] = {F.avg_pool1d: 1, F.avg_pool2d: 2, F.avg_pool3d: 3}
_ADAPTIVE_POOLS: dict[Any, int] = {F.adaptive_avg_pool1d: 1, F.adaptive_avg_pool2d: 2, F.adaptive_avg_pool3d: 3}


@records(*_AVERAGE_POOLS)
def _average_pool(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    names = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    x, kernel, stride, padding, ceil, include, divisor = bind(
        args, kwargs, *names, padding=0, ceil_mode=False, count_include_pad=True
    )
    if (
        divisor is not None and divisor < 0 and rec.value(x) is not None
    ):  # the average has weights >= 0; the sign is a factor
        return rec.call(torch.neg, rec.call(func, x, kernel, stride, padding, ceil, include, -divisor))
    spatial = _AVERAGE_POOLS[func]
    kernel = per_dimension(kernel, spatial)
    stride = per_dimension(stride, spatial) if stride else kernel
    windows = (kernel, stride, per_dimension(padding, spatial), include, divisor)
    return _record_average(rec, func, args, kwargs, x, windows if x.dim() == spatial + 2 else None)


@records(*_ADAPTIVE_POOLS)
def _adaptive_average_pool(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x = args[0] if args else kwargs["input"]
    return _record_average(rec, func, args, kwargs, x, () if x.dim() == _ADAPTIVE_POOLS[func] + 2 else None)


@records(torch.mean, Tensor.mean, torch.sum, Tensor.sum)
def _mean(rec: Recorder, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, dim = bind(args, {**kwargs, "dim": kwargs.get("dim", kwargs.get("axis"))}, "input", "dim", *("",) * 3)[:2]
    dims = () if dim is None else ((dim,) if isinstance(dim, int) else tuple(dim))
    dims = tuple(d % x.dim() for d in dims)
    if rec.value(x) is None or not dims or 0 in dims or kwargs.get("dtype") is not None:
        return rec.unknown(func, args, kwargs)
    windows = _global_windows(x.shape, dims, func in (torch.sum, Tensor.sum))
    return _record_average(rec, func, args, kwargs, x, windows)


def _global_windows(shape: torch.Size, dims: tuple[int, ...], total: bool) -> tuple[Any, ...] | None:
    """The one window of a mean, or sum, over all positions of [B, C, ...]; None for other dimensions."""
    spatial = tuple(shape[2:])
    if not 1 <= len(spatial) <= 3 or sorted(dims) != list(range(2, len(shape))) or 0 in spatial:
        return None
    return (spatial, (1,) * len(spatial), (0,) * len(spatial), True, 1) if total else ()


def _record_average(rec: Recorder, func: Any, args: Any, kwargs: Any, x: Tensor, windows: Any) -> Tensor:
    value = rec.value(x)
    if value is None:
        return rec.unknown(func, args, kwargs)
    out = func(*args, **kwargs)
    rest, options = args[1:], {name: option for name, option in kwargs.items() if name != "input"}
    rec.add(AveragePool(value, lambda v: func(v, *rest, **options), windows), out, nonnegative=value.nonnegative)
    return out
