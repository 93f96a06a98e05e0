"""Relevance operations of convolutions. The convolutions themselves are the vendor's (oneDNN, cuDNN), called through ATen."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from ._autograd import first_order

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default
_DATA, _WEIGHT = [True, False, False], [False, True, False]


class ConvGeometry(NamedTuple):
    """How a convolution slides: every entry per spatial dimension, as ``torch.ops.aten.convolution`` takes them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int


def _data_gradient(s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
    """W^T s for a convolution whose input looked like ``input`` (only its sizes and layout are read)."""
    if _is_pointwise(s, weight, geometry):
        return _pointwise(weight.flatten(1).t(), s)
    channels = weight.shape[0] if geometry.transposed else weight.shape[1] * geometry.groups
    if input.shape[0] != s.shape[0] or input.shape[1] != channels or input.dtype != s.dtype:
        # Several targets (the batch is that of s), stacked weights, or autocast: an uninitialized tensor of the right form will do.
        format = torch.channels_last if _is_channels_last(input) else torch.contiguous_format
        shape = (s.shape[0], channels, *input.shape[2:])
        input = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=format)
    return _convolution_backward(s, input, weight, None, *geometry, _DATA)[0]


def _apply(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """W a, without bias."""
    if _is_pointwise(input, weight, geometry):
        return _pointwise(weight.flatten(1), input)
    return _convolution(input, weight, None, *geometry)


def _pointwise(matrix: Tensor, values: Tensor) -> Tensor:
    # bmm, not matmul, which would fold batch and positions together and copy both ways.
    product = torch.bmm(matrix.expand(values.shape[0], -1, -1), values.flatten(2))
    return product.view(values.shape[0], -1, *values.shape[2:])


def _is_pointwise(values: Tensor, weight: Tensor, geometry: ConvGeometry) -> bool:
    """A 1x1 convolution on the CPU: there a plain matrix product is ahead of every convolution routine (docs/performance.md)."""
    return (
        weight[0, 0].numel() == 1
        and values.device.type == "cpu"
        and values.dtype in (torch.float32, torch.float64)
        and values.is_contiguous()
        and not geometry.transposed
        and geometry.groups == 1
        and max(geometry.stride) == 1
        and max(geometry.padding) == 0
    )


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _weight_gradient(grad_output: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    return _convolution_backward(grad_output, input, weight, None, *geometry, _WEIGHT)[1]


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
        s = ops.epsilon_scale(multiplier, addend, output, scale, epsilon, leak) if ctx.pointwise else multiplier
        ctx.save_for_backward(multiplier if ctx.pointwise else None, addend, output, scale, weight, s)
        ctx.geometry, ctx.epsilon, ctx.leak = geometry, epsilon, leak
        return _data_gradient(s, weight, input, geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, addend, output, scale, weight, s = ctx.saved_tensors
        need = ctx.needs_input_grad
        grad_weight = _weight_gradient(s, grad, weight, ctx.geometry) if need[4] else None
        grads: tuple[Tensor | None, ...] = (None, None, None, None)
        if any(need[:4]):
            t = _apply(grad, weight, ctx.geometry)
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
        return _data_gradient(s, weight, input, geometry)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        s, weight = ctx.saved_tensors
        grad_s = _apply(grad, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(s, grad, weight, ctx.geometry) if ctx.needs_input_grad[1] else None
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
