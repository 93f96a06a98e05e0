"""Relevance of convolutions under the epsilon rule, and the transposed map for rules that make their own s and weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import ops
from . import _conv_routes, _vendor
from ._autograd import call, first_order
from ._conv_routes import NO_FACTORS, Factors, has_fused_conv
from ._vendor import ConvGeometry
from .shared_weight import Ledger, SharedWeight


class _ConvEpsilon(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        weight: Tensor,
        input: Tensor,
        geometry: ConvGeometry,
        epsilon: float,
        token: Tensor | None = None,
        ledger: Ledger | None = None,
    ) -> Tensor:
        ctx.ledger = ledger
        ctx.pointwise = addend is not None or output is not None or scale is not None
        ctx.geometry, ctx.epsilon = geometry, epsilon
        # s is not saved: backward makes it again, one elementwise pass for a tensor less per layer.
        ctx.save_for_backward(multiplier, addend, output, scale, weight)
        if has_fused_conv(weight, geometry):
            factors = Factors(addend, output, scale)
            return _conv_routes.relevance(multiplier, factors, weight, input, geometry, epsilon)
        s = ops.epsilon_scale(multiplier, addend, output, scale, epsilon) if ctx.pointwise else multiplier
        return _vendor.data_gradient(s, weight, input, geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, addend, output, scale, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_weight = None
        factors, settings = Factors(addend, output, scale), (weight, ctx.geometry, ctx.epsilon)
        if need[4]:
            grad_weight = _conv_routes.weight_gradient(multiplier, factors, grad, *settings)
        if ctx.ledger is not None:

            def contribution(sum: Tensor | None) -> Tensor:
                part = _conv_routes.weight_gradient(multiplier, factors, grad, *settings)
                return part if sum is None else sum.add_(part)

            ctx.ledger.defer(contribution)
        grads: tuple[Tensor | None, ...] = (None, None, None, None)
        if any(need[:4]):
            t = _conv_routes.apply(grad, weight, ctx.geometry)
            if ctx.pointwise:
                g, u, k = ops.epsilon_scale_backward(t, multiplier, addend, output, scale, ctx.epsilon, need[3])
                grads = (g, g if need[1] else None, u if need[2] else None, k if need[3] else None)
            else:
                grads = (t, None, None, None)
        return (*grads, grad_weight, *(None,) * 5)


def conv_epsilon(
    multiplier: Tensor,
    weight: Tensor,
    input: Tensor,
    output: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    geometry: ConvGeometry,
    addend: Tensor | None = None,
    epsilon: float = 1e-2,
    shared: SharedWeight | None = None,
) -> Tensor:
    r"""The multiplier at the input of convolution [-> batch norm] [-> ReLU] under the epsilon rule.

    G_in = W^T s,  s = (G + G2) * m(u) * k_c as in :func:`epsilon_scale`. With R = a * G this is
    R_j = a_j * sum_k w_jk R_k / (z_k + epsilon), the epsilon rule, for the z_k > 0 that pass the ReLU.

    Args:
        multiplier: G at the block's output, (T*B, C_out, ...), T targets of one batch, target-major.
        weight: of the convolution, as ``torch.ops.aten.convolution`` takes it, dtype of multiplier.
        input: the convolution's input, (B, C_in, ...); only its sizes and memory format are read.
        output, scale, addend, epsilon: as in :func:`epsilon_scale`.
        geometry: stride, padding, dilation, transposed, output padding, groups.
        shared: of a layer whose own backward pass makes the weight gradient; None: it is made here.

    Returns:
        G_in, (T*B, C_in, ...).

    Gradients: multiplier, addend, output, scale, weight; first order only. Backward costs one forward convolution, one weight
        gradient and one elementwise pass.
    Deterministic: as the vendor's convolution.

    Source: Bach et al. 2015 (epsilon rule); arXiv 2401.08409 (LRP-Flex); docs/method.md section 1.
    """
    settings = (input, geometry, float(epsilon))
    if shared is None:
        return call(_ConvEpsilon, multiplier, addend, output, scale, weight, *settings)
    return call(_ConvEpsilon, multiplier, addend, output, scale, weight.detach(), *settings, *shared)


class _ConvTranspose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
        ctx.save_for_backward(s, weight)
        ctx.geometry = geometry
        if has_fused_conv(weight, geometry):
            return _conv_routes.relevance(s, NO_FACTORS, weight, input, geometry)
        return _vendor.data_gradient(s, weight, input, geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, weight = ctx.saved_tensors
        grad_s = _conv_routes.apply(grad, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = _conv_routes.weight_gradient(s, NO_FACTORS, grad, weight, ctx.geometry)
        return grad_s, grad_weight, None, None


def conv_transpose(s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
    """W^T s: the adjoint of a convolution, for rules that make their own s and weights.

    Args:
        s: (T*B, C_out, ...).
        weight: as the convolution's, dtype of s.
        input: the convolution's input, (B, C_in, ...); only its sizes and memory format are read.
        geometry: of the convolution.

    Returns:
        (T*B, C_in, ...).

    Gradients: s, weight; first order only.
    """
    return call(_ConvTranspose, s, weight, input, geometry)


class _ConvMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, known: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry = geometry
        if known is not None:
            return known.detach()
        return _vendor.apply(input, weight, geometry, bias)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_input = _vendor.data_gradient(grad, weight, input, ctx.geometry) if need[0] else None
        grad_weight = _vendor.weight_gradient(grad, input, weight, ctx.geometry) if need[1] else None
        grad_bias = grad.sum((0, *range(2, grad.dim()))) if need[2] else None
        return grad_input, grad_weight, grad_bias, None, None


def conv_map(
    input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry, known: Tensor | None = None
) -> Tensor:
    """W a + b by the vendor's convolution, or on the CPU by a faster route where there is one.

    Args:
        input: a, (B, C_in, ...).
        weight: W, as ``torch.ops.aten.convolution`` takes it, dtype of input.
        bias: b, (C_out,), or None.
        geometry: of the convolution.
        known: the result, (B, C_out, ...), if the forward pass has computed it already: it then costs nothing, its backward what it
            always costs.

    Gradients: input, weight, bias; first order only.
    """
    return call(_ConvMap, input, weight, bias, geometry, known)
