"""Weight gradients of the relevance pass that wait for the classification's backward pass.

The backward pass of a heatmap runs ahead of the classification's and in the other direction: it has the gradients of all weights before
the first of the classification's, so that both would be there at a time. Where a weight is larger than the two tensors that its gradient
is made of, these wait in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .autograd import first_order

_SMALLEST = 1 << 15  # elements of a weight below which an autograd function costs more than there is to save


class Late(NamedTuple):
    """Stands for what a linear layer read and made, (B, C_in, ...) and (B, C_out, ...), without memory of its own.

    An operation that takes both as inputs hands the two factors of its weight's gradient to them in backward, as their gradients: v and s,
    so that the weight's is that of <s, W v>. For one operation only: factors do not add up.
    """

    read: Tensor
    made: Tensor

    def fits(self, pulled: torch.Size, s: Tensor) -> bool:
        """Whether v and s will have these sizes and this dtype (several targets have more)."""
        return self.read.shape == pulled and self.made.shape == s.shape and self.made.dtype == s.dtype


class _LateWeight(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, gradient: Callable[[Tensor, Tensor, Tensor], Tensor], *shapes: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(weight)
        ctx.set_materialize_grads(False)
        ctx.gradient = gradient
        read, made = (weight.new_empty(()).expand(shape) for shape in shapes)
        return read, made

    @staticmethod
    @first_order
    def backward(ctx: Any, v: Tensor | None, s: Tensor | None) -> Any:
        (weight,) = ctx.saved_tensors
        return None if v is None or s is None else ctx.gradient(s, v, weight), None, None, None


def late_weight(
    weight: Tensor,
    gradient: Callable[[Tensor, Tensor, Tensor], Tensor],
    read: Sequence[int],
    made: Sequence[int],
) -> Late | None:
    """Let a weight's gradient wait; None where that saves nothing.

    Autograd runs last what was made first: called ahead of the layer's own operation, this runs in backward right behind that layer's own.

    Args:
        weight: W, whose gradient it will be.
        gradient: s, v, W -> the gradient of <s, W v> for W.
        read: sizes of the layer's input, (B, C_in, ...).
        made: sizes of its output, (B, C_out, ...).

    Gradients: weight; first order only.
    """
    if (
        weight.numel() < max(_SMALLEST, prod(read) + prod(made))
        or not weight.requires_grad
        or not torch.is_grad_enabled()
    ):
        return None
    return Late(*_LateWeight.apply(weight, gradient, read, made))
