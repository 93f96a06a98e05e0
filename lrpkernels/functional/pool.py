"""Relevance operations of pooling layers: winner-takes-all for max pooling, the transposed map for average pooling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._autograd import first_order

_MAX_BACKWARD: dict[int, Callable[..., Tensor]] = {
    2: torch.ops.aten.max_pool2d_with_indices_backward.default,
    3: torch.ops.aten.max_pool3d_with_indices_backward.default,
}


class _MaxPoolWinner(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, indices: Tensor, input: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(indices)
        targets = multiplier.shape[0] // indices.shape[0]
        scatter = _MAX_BACKWARD[indices.dim() - 2]
        if targets == 1:
            return scatter(multiplier, input, *arguments, indices)
        parts = multiplier.chunk(targets)
        return torch.cat([scatter(part, input, *arguments, indices) for part in parts])

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        targets = grad.shape[0] // indices.shape[0]
        parts = grad.flatten(2).unflatten(0, (targets, -1))
        index = indices.flatten(2).expand(targets, -1, -1, -1)
        return parts.gather(3, index).reshape(grad.shape[0], *indices.shape[1:]), None, None, None


def max_pool_winner(multiplier: Tensor, indices: Tensor, input: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """The multiplier at the input of a max pooling layer: everything goes to the winner of each window.

    Args:
        multiplier: G at the layer's output, (T*B, C, ...), T targets of one batch, target-major.
        indices: the winners, (B, C, ...), int64, as ``return_indices=True`` gives them.
        input: the layer's input, (B, C, ...).
        arguments: (kernel_size, stride, padding, dilation, ceil_mode) of the layer.

    Returns:
        G at the input, (T*B, C, ...); overlapping windows add up.

    Gradients: multiplier; first order only.

    Source: Bach et al. 2015 (winner-takes-all); docs/method.md section 1.
    """
    return _MaxPoolWinner.apply(multiplier, indices, input, arguments)
