"""The positive part of a weight with a batch norm merged into it, as one step of the gradient graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autograd import call, first_order

_threshold_backward = torch.ops.aten.threshold_backward.default


class _PositiveWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor | None) -> Tensor:
        part = torch.relu(weight) if scale is None else (weight * scale).relu_()
        ctx.save_for_backward(part, weight, scale)
        return part

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        part, weight, scale = ctx.saved_tensors
        grad = _threshold_backward(grad, part, 0)  # relu's own: one pass, where clamp's compares and selects in two
        if scale is None:
            return grad, None
        grad_scale = _dots(grad, weight, scale) if ctx.needs_input_grad[1] else None
        return grad.mul_(scale) if ctx.needs_input_grad[0] else None, grad_scale


def _dots(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(grad * weight) summed to the shape of ``scale``; by output channel without a tensor of products."""
    if scale.shape[0] == weight.shape[0] == scale.numel():
        rows = torch.bmm(grad.reshape(weight.shape[0], 1, -1), weight.to(grad.dtype).reshape(weight.shape[0], -1, 1))
        return rows.view(scale.shape)
    return (grad * weight).sum_to_size(scale.shape)


def positive_weight(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """(k W)+, the positive part of a weight scaled per channel. Its gradient at 0 is 0.

    Args:
        weight: W, any shape, float32 or float64 (or a 16-bit type without ``scale``).
        scale: k, broadcastable to the weight, its dtype; None: 1.

    Returns:
        The weight's shape.

    Gradients: weight, scale; first order only.

    Source: docs/method.md section 1 (z+ rule, merged batch norm).
    """
    return call(_PositiveWeight, weight, scale)
