"""Adjoints of parameter-free linear maps given as functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._autograd import first_order


class _LinearAdjoint(torch.autograd.Function):
    """The transposed map A^T of a parameter-free linear map A; its derivative is A itself."""

    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, adjoint: Callable[[Tensor], Tensor], map: Callable[[Tensor], Tensor]) -> Tensor:
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
    return _LinearAdjoint.apply(multiplier, adjoint, map)
