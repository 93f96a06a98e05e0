"""Concatenation and selection: where their multipliers come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .autograd import call, first_order
from .layout import memory_format


class _Uncat(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, dim: int, places: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        ctx.dim, ctx.places, ctx.length = dim, places, multiplier.shape[dim]
        format = memory_format(multiplier)
        parts = []
        for start, length in places:
            part = multiplier.narrow(dim, start, length)
            # A view that is saved for backward keeps the whole multiplier: a DenseNet would keep all its concatenations.
            parts.append(part if 2 * length > ctx.length else part.contiguous(memory_format=format))
        return tuple(parts)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor) -> Any:
        parts, end = [], 0
        for (start, length), grad in zip(ctx.places, grads, strict=True):
            if start > end:  # a constant was concatenated here
                parts.append(_zeros(grad, ctx.dim, start - end))
            parts.append(grad)
            end = start + length
        if end < ctx.length:
            parts.append(_zeros(grads[0], ctx.dim, ctx.length - end))
        return torch.cat(parts, ctx.dim), None, None


def _zeros(like: Tensor, dim: int, length: int) -> Tensor:
    shape = list(like.shape)
    shape[dim] = length
    return like.new_zeros(shape)


def uncat(multiplier: Tensor, dim: int, places: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
    """The parts of a concatenation's multiplier. Their gradients come back by one concatenation instead of padded sums.

    Args:
        multiplier: G at the concatenation, (T*B, ...).
        dim: the dimension, not the first.
        places: (start, length) of each part along it, in ascending order.

    Returns:
        One tensor for each place: a view of ``multiplier`` if it is most of it, else a copy.

    Gradients: multiplier; first order only.
    """
    return call(_Uncat, multiplier, dim, places)


class _Unselect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, indices: Sequence[Any], size: torch.Size, *parts: Tensor | None) -> Tensor:
        first = next(part for part in parts if part is not None)
        ctx.indices, ctx.given = indices, [part is not None for part in parts]
        whole = first.new_zeros(first.shape[0], *size)
        for index, part in zip(indices, parts, strict=True):
            if part is not None:
                whole[index] = part
        return whole

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        pairs = zip(ctx.indices, ctx.given, strict=True)
        return None, None, *(grad[index] if given else None for index, given in pairs)


def unselect(parts: Sequence[Tensor | None], indices: Sequence[Any], size: torch.Size) -> Tensor:
    """A tensor of zeros but for these parts.

    Args:
        parts: multipliers at parts of a tensor that do not overlap, (T*B, ...); None: zero. One at least is given.
        indices: where each part stands: of whole numbers, slices and None, the first a whole slice.
        size: of the tensor, without its first dimension.

    Returns:
        (T*B, *size).

    Gradients: parts; first order only.
    """
    return call(_Unselect, indices, size, *parts)
