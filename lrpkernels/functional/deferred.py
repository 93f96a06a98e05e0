"""Layers whose weight gradient waits: that of the relevance pass is computed where the layer's own backward pass is.

A loss on a heatmap is differentiated before the classification, whose backward pass starts at the last layer. Weight gradients of late
layers, the largest, would all lie there in between. Here the backward pass of relevance leaves them to the layer's own function, which
makes both at once. It costs the tensors that they are made of, small ones in late layers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .autograd import call, first_order
from .geometry import ConvGeometry

Contribution = Callable[["Tensor | None"], Tensor]  # adds to a gradient, in place; makes one of None


class Ledger:
    """What the relevance passes of one forward pass have left to a layer's backward pass."""

    def __init__(self) -> None:
        self._pending: list[Contribution] = []

    def defer(self, contribution: Contribution) -> None:
        self._pending.append(contribution)

    def settle(self, gradient: Tensor | None) -> Tensor | None:
        """The layer's own weight gradient plus all that was left."""
        while self._pending:
            gradient = self._pending.pop()(gradient)
        return gradient


class SharedWeight(NamedTuple):
    """For the relevance functions of a layer with a ledger.

    Attributes:
        token: (0,), an output of the layer's function; who takes it as an input has its backward pass ahead of the layer's.
        ledger: takes the weight gradients.
    """

    token: Tensor
    ledger: Ledger


class _SharedConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, ledger: Ledger
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight)
        ctx.geometry, ctx.ledger = geometry, ledger
        return torch.ops.aten.convolution.default(input, weight, bias, *geometry), input.new_empty(0)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None, token: Tensor | None) -> Any:
        input, weight = ctx.saved_tensors
        need = [*ctx.needs_input_grad[:3]]
        grads: Any = (None, None, None)
        if grad is not None:
            sizes = [grad.shape[1]] if need[2] else None
            grads = torch.ops.aten.convolution_backward.default(grad, input, weight, sizes, *ctx.geometry, need)
        grad_input, grad_weight, grad_bias = grads
        return grad_input, ctx.ledger.settle(grad_weight), grad_bias, None, None


class _SharedLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, ledger: Ledger) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(input, weight)
        ctx.ledger = ledger
        return F.linear(input, weight, bias), input.new_empty(0)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor | None, token: Tensor | None) -> Any:
        input, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_input = grad_weight = grad_bias = None
        if grad is not None:
            grad_input = grad @ weight if need[0] else None
            grad_weight = grad.t() @ input if need[1] else None
            grad_bias = grad.sum(0) if need[2] else None
        return grad_input, ctx.ledger.settle(grad_weight), grad_bias, None


class _LinearTranspose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, token: Tensor, ledger: Ledger) -> Tensor:
        ctx.save_for_backward(s, weight)
        ctx.ledger = ledger
        return s @ weight

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, weight = ctx.saved_tensors
        if ctx.needs_input_grad[2]:
            ctx.ledger.defer(lambda sum: s.t() @ grad if sum is None else sum.addmm_(s.t(), grad))
        return grad @ weight.t() if ctx.needs_input_grad[0] else None, None, None, None


def sharing_pays(input: Tensor, weight: Tensor) -> bool:
    """Whether a weight gradient is larger than what its ingredients cost, about two tensors of each of the layer's sides."""
    output_size = input.numel() // max(1, input.shape[1]) * weight.shape[0]  # with stride it is less
    return weight.requires_grad and weight.numel() >= 2 * (input.numel() + output_size)


def shared_conv(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
) -> tuple[Tensor, SharedWeight]:
    """A convolution (B, C_in, ...) -> (B, C_out, ...) that also makes the weight gradients of the relevance passes through it.

    Gradients: input, weight, bias; first order only.
    """
    ledger = Ledger()
    output, token = _SharedConv.apply(input, weight, bias, geometry, ledger)
    return output, SharedWeight(token, ledger)


def shared_linear(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, SharedWeight]:
    """A dense layer (B, C_in) -> (B, C_out) that also makes the weight gradients of the relevance passes through it.

    Gradients: input, weight, bias; first order only.
    """
    ledger = Ledger()
    output, token = _SharedLinear.apply(input, weight, bias, ledger)
    return output, SharedWeight(token, ledger)


def linear_transpose(s: Tensor, weight: Tensor, shared: SharedWeight) -> Tensor:
    """s W, (T*B, C_out) -> (T*B, C_in), whose weight gradient the layer's own backward pass makes.

    Gradients: s, and the layer's weight by its ledger; first order only.
    """
    return call(_LinearTranspose, s, weight.detach(), shared.token, shared.ledger)
