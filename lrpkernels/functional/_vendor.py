"""Convolutions of the vendor (oneDNN, cuDNN) through ATen with our elementwise kernels around them.

The path of CPU tensors, and the one that the fused CUDA kernels compete with.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from . import _cpu_conv

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


class Weights(IntEnum):
    """Which weights a convolution op uses and how their results combine, a the layer's input (``LrpConvWeights`` in C++)."""

    ALL = 0
    POSITIVE = 1
    NEGATIVE = 2
    SAME_SIGN = 3  # W+ where a >= 0, W- elsewhere
    OPPOSITE_SIGN = 4  # W- where a >= 0, W+ elsewhere
    BOX = 5  # relevance a * (W^T s) - low * (W+^T s) - high * (W-^T s)


def scaled(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    value: Tensor | None,
    denominator: Tensor | None,
    epsilon: float,
) -> Tensor:
    """s = (G + addend) * m(output) * scale_c * value / (denominator + eps sgn denominator); None drops its factor."""
    s = multiplier
    if addend is not None or output is not None or scale is not None:
        s = ops.epsilon_scale(s, addend, output, scale, epsilon)
    if denominator is not None:
        s = ops.ratio(s, value, denominator, epsilon)
    return s


def data_gradient(s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
    """W^T s for a convolution whose input looked like ``input`` (only its sizes and layout are read)."""
    ours = _cpu_conv.data_gradient(s, weight, input.shape[2:], geometry)
    if ours is not None:
        return ours
    channels = weight.shape[0] if geometry.transposed else weight.shape[1] * geometry.groups
    if input.shape[0] != s.shape[0] or input.shape[1] != channels or input.dtype != s.dtype:
        # Several targets (the batch is that of s), stacked weights, or autocast: an uninitialized tensor of the right form will do.
        format = torch.channels_last if is_channels_last(input) else torch.contiguous_format
        shape = (s.shape[0], channels, *input.shape[2:])
        input = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=format)
    return _convolution_backward(s, input, weight, None, *geometry, _DATA)[0]


def apply(input: Tensor, weight: Tensor, geometry: ConvGeometry, bias: Tensor | None = None) -> Tensor:
    """W a + b."""
    ours = _cpu_conv.apply(input, weight, geometry)
    if ours is not None:
        return ours if bias is None else ours.add_(bias.view(-1, *(1,) * (ours.dim() - 2)))
    return _convolution(input, weight, bias, *geometry)


def weight_gradient(grad_output: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <grad_output, W input> for W; of ``weight`` only sizes and layout are read."""
    ours = _cpu_conv.weight_gradient(grad_output, input, weight, geometry)
    if ours is not None:
        return ours
    return _convolution_backward(grad_output, input, weight, None, *geometry, _WEIGHT)[1]


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor is channels-last and not contiguous as well."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def part_of(weight: Tensor, weights: int) -> Tensor:
    """W, W+ or W-."""
    if weights == Weights.POSITIVE:
        return weight.clamp(min=0)
    return weight.clamp(max=0) if weights == Weights.NEGATIVE else weight


def pulled(
    s: Tensor,
    weight: Tensor,
    weights: int,
    input: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    like: Tensor,
    geometry: ConvGeometry,
) -> Tensor:
    """W^T s with the weights that ``weights`` names; ``input``, ``low`` and ``high`` as in :class:`Weights`, ``like`` for its sizes."""
    if weights in (Weights.ALL, Weights.POSITIVE, Weights.NEGATIVE):
        return data_gradient(s, part_of(weight, weights), like, geometry)
    if input is None:
        raise RuntimeError(f"conv_relevance: input must be given for weights {int(weights)}")
    up, down = (
        data_gradient(s, part_of(weight, part), like, geometry) for part in (Weights.POSITIVE, Weights.NEGATIVE)
    )
    if weights == Weights.BOX:
        if low is None or high is None:
            raise RuntimeError("conv_relevance: low and high must be given for weights 5")
        bounds = [b.to(s.dtype).view(1, -1, *(1,) * (s.dim() - 2)) for b in (low, high)]
        return _times(data_gradient(s, weight, like, geometry), input) - bounds[0] * up - bounds[1] * down
    if weights == Weights.OPPOSITE_SIGN:
        up, down = down, up
    many = input.repeat(s.shape[0] // input.shape[0], *(1,) * (input.dim() - 1))
    return torch.where(many >= 0, up, torch.where(many < 0, down, many))


def _times(values: Tensor, factor: Tensor) -> Tensor:
    """values [T * B, C, ...] times factor [B, C, ...]."""
    return (values.unflatten(0, (-1, factor.shape[0])) * factor).flatten(0, 1)
