"""Relevance of convolutions under the epsilon rule, and the transposed map for rules that make their own s and weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import ops
from . import _conv_routes, _vendor
from ._autograd import first_order
from ._conv_routes import NO_FACTORS, Factors, has_fused_conv
from ._vendor import ConvGeometry

_convolution_backward = torch.ops.aten.convolution_backward.default


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
        leak: float,
    ) -> Tensor:
        ctx.pointwise = addend is not None or output is not None or scale is not None
        ctx.geometry, ctx.epsilon, ctx.leak = geometry, epsilon, leak
        # s is not saved: backward makes it again, one elementwise pass for a tensor less per layer.
        ctx.save_for_backward(multiplier, addend, output, scale, weight)
        if has_fused_conv(weight, geometry):
            factors = Factors(addend, output, scale)
            return _conv_routes.relevance(multiplier, factors, weight, input, geometry, epsilon, leak)
        s = ops.epsilon_scale(multiplier, addend, output, scale, epsilon, leak) if ctx.pointwise else multiplier
        return _vendor.data_gradient(s, weight, input, geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, addend, output, scale, weight = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_weight = None
        if need[4]:
            grad_weight = _conv_routes.weight_gradient(
                multiplier, Factors(addend, output, scale), grad, weight, ctx.geometry, ctx.epsilon, ctx.leak
            )
        grads: tuple[Tensor | None, ...] = (None, None, None, None)
        if any(need[:4]):
            t = _conv_routes.apply(grad, weight, ctx.geometry)
            if ctx.pointwise:
                g, u, k = ops.epsilon_scale_backward(
                    t, multiplier, addend, output, scale, ctx.epsilon, ctx.leak, need[3]
                )
                grads = (g, g if need[1] else None, u if need[2] else None, k if need[3] else None)
            else:
                grads = (t, None, None, None)
        return (*grads, grad_weight, None, None, None, None)


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
    leak: float = 0.0,
) -> Tensor:
    r"""The multiplier at the input of convolution [-> batch norm] [-> ReLU] under the epsilon rule.

    G_in = W^T s,  s = (G + G2) * m(u) * k_c as in :func:`epsilon_scale`. With R = a * G this is
    R_j = a_j * sum_k w_jk R_k / (z_k + epsilon), the epsilon rule, for the z_k > 0 that pass the ReLU.

    Args:
        multiplier: G at the block's output, (T*B, C_out, ...), T targets of one batch, target-major.
        weight: of the convolution, as ``torch.ops.aten.convolution`` takes it, dtype of multiplier.
        input: the convolution's input, (B, C_in, ...); only its sizes and memory format are read.
        output, scale, addend, epsilon, leak: as in :func:`epsilon_scale`.
        geometry: stride, padding, dilation, transposed, output padding, groups.

    Returns:
        G_in, (T*B, C_in, ...).

    Gradients: multiplier, addend, output, scale, weight; first order only. Backward costs one forward convolution, one weight
        gradient and one elementwise pass.
    Deterministic: as the vendor's convolution.

    Source: Bach et al. 2015 (epsilon rule); arXiv 2401.08409 (LRP-Flex); docs/method.md section 1.
    """
    return _ConvEpsilon.apply(multiplier, addend, output, scale, weight, input, geometry, float(epsilon), float(leak))


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
    return _ConvTranspose.apply(s, weight, input, geometry)


class _ConvKnown(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.geometry, ctx.bias_sizes = geometry, None if bias is None else [bias.shape[0]]
        return known.detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        mask = list(ctx.needs_input_grad[1:4])
        grads = _convolution_backward(grad, input, weight, ctx.bias_sizes, *ctx.geometry, mask)
        return None, *(g if need else None for g, need in zip(grads, mask, strict=True)), None


def conv_known(known: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """A convolution whose value the forward pass has computed already: it costs nothing, its backward what it always costs.

    Args:
        known: W a + b, (B, C_out, ...).
        input, weight, bias, geometry: of that convolution.

    Gradients: input, weight, bias; first order only.
    """
    return _ConvKnown.apply(known, input, weight, bias, geometry)
