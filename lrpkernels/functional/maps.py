"""Adjoints of parameter-free linear maps: given as functions, and of concatenation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._fake import memory_format
from ._autograd import call, first_order


class _LinearAdjoint(torch.autograd.Function):
    """The transposed map A^T of a parameter-free linear map A; its derivative is A itself."""

    @staticmethod
    def forward(
        ctx: Any, multiplier: Tensor, adjoint: Callable[[Tensor], Tensor], map: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.map = map
        return adjoint(multiplier)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.map(grad), None, None


def linear_adjoint(multiplier: Tensor, adjoint: Callable[[Tensor], Tensor], map: Callable[[Tensor], Tensor]) -> Tensor:
    """A^T G for a parameter-free linear map A (average pooling, mean): ``adjoint`` computes A^T, ``map`` computes A.

    Gradients: multiplier, by ``map``; first order only.
    """
    return call(_LinearAdjoint, multiplier, adjoint, map)


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


class _ScatterWinner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, indices: Tensor, spatial: Sequence[int]) -> Tensor:
        ctx.save_for_backward(indices)
        targets = multiplier.shape[0] // indices.shape[0]
        flat = multiplier.flatten(2)
        index = indices.flatten(2).repeat(targets, 1, 1)
        positions = 1
        for size in spatial:
            positions *= size
        result = flat.new_zeros(*flat.shape[:2], positions).scatter_add_(2, index, flat)
        return result.unflatten(2, tuple(spatial))

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        targets = grad.shape[0] // indices.shape[0]
        index = indices.flatten(2).repeat(targets, 1, 1)
        return grad.flatten(2).gather(2, index).unflatten(2, indices.shape[2:]), None, None


def scatter_winner(multiplier: Tensor, indices: Tensor, spatial: Sequence[int]) -> Tensor:
    """Winner takes all for any pooling that can name its winners (1-d, adaptive, fractional max pooling).

    Args:
        multiplier: G at the layer's output, (T*B, C, ...), T targets of one batch, target-major.
        indices: flat position of each winner in its channel's input, (B, C, ...), int64.
        spatial: the input's spatial sizes.

    Returns:
        G at the input, (T*B, C, *spatial); overlapping windows add up.

    Gradients: multiplier; first order only.
    Deterministic: on the CPU; on CUDA sums of overlapping windows may be added in any order.

    Source: Bach et al. 2015 (winner-takes-all); docs/method.md section 1.
    """
    return call(_ScatterWinner, multiplier, indices, spatial)
