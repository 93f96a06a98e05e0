"""The two ways a convolution op can take: the vendor's convolution (oneDNN, cuDNN) through ATen, or our fused CUDA kernel.

On the CPU the vendor's always; on CUDA tensors :mod:`lrpkernels.tuning` chooses per shape.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import tuning
from .._extension import has_cuda_kernels, ops
from . import _vendor
from ._vendor import ConvGeometry, Weights

# The type of device whose tensors have fused kernels (lrpkernels.testing.emulated_cuda makes it the CPU).
fused_device: str | None = "cuda" if has_cuda_kernels() else None


class Factors(NamedTuple):
    """What makes s of a multiplier, s = (G + addend) * m(output) * scale_c * value / (denominator + eps sgn denominator)."""

    addend: Tensor | None = None
    output: Tensor | None = None
    scale: Tensor | None = None
    value: Tensor | None = None
    denominator: Tensor | None = None

    @property
    def batch(self) -> int:
        """Images of the forward values; 0 if there are none."""
        return next((f.shape[0] for f in (self.output, self.value) if f is not None), 0)


NO_FACTORS = Factors()


class Epilogue(NamedTuple):
    """What W^T s meets before it is written: the layer's input a [B, C_in, ...] and, for ``Weights.BOX``, the pixels' bounds [C_in]."""

    input: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None


NO_EPILOGUE = Epilogue()


def has_fused_kernels(tensor: Tensor) -> bool:
    """Whether this tensor's device has kernels of ours that replace PyTorch's own (CUDA, or its emulation)."""
    return fused_device is not None and tensor.device.type == fused_device


def has_fused_conv(weight: Tensor, geometry: ConvGeometry) -> bool:
    """Whether a fused kernel exists for this convolution: one or two dimensions, not transposed."""
    return has_fused_kernels(weight) and not geometry.transposed and weight.dim() in (3, 4)


def _tensor_cores(dtype: torch.dtype) -> bool:
    return dtype != torch.float32 or tuning.allows_tf32()


def _key(op: str, values: Tensor, weight: Tensor, geometry: ConvGeometry, *rest: Any) -> tuple[Any, ...]:
    """All that the speed of a convolution depends on."""
    layout = "NHWC" if _vendor.is_channels_last(values) else "NCHW"
    cores = _tensor_cores(values.dtype)
    sizes = (values.shape, weight.shape, *geometry[:3], geometry[5])
    return (op, values.device.index, values.dtype, layout, *sizes, cores, *rest)


def relevance(
    multiplier: Tensor,
    factors: Factors,
    weight: Tensor,
    input: Tensor,
    geometry: ConvGeometry,
    epsilon: float = 0.0,
    weights: Weights = Weights.ALL,
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """W^T s where the device has fused kernels; of ``input`` sizes and layout are read."""

    def fused() -> Tensor:
        return ops.conv_relevance(
            multiplier, *factors, weight, weights, *epilogue, input.shape[2:], *geometry[:3], geometry.groups, epsilon,
            _tensor_cores(multiplier.dtype),
        )  # fmt: skip

    def vendor() -> Tensor:
        s = _vendor.scaled(multiplier, *factors, epsilon)
        return _vendor.pulled(s, weight, weights, *epilogue, input, geometry)

    given = (*(f is not None for f in factors), weights)
    key = _key("relevance", multiplier, weight, geometry, input.shape[2:], factors.batch, *given)
    return tuning.tuner.run(key, multiplier, fused, vendor)[0]


def apply(input: Tensor, weight: Tensor, geometry: ConvGeometry, weights: Weights = Weights.ALL) -> Tensor:
    """W a, without bias; W, W+ or W-."""
    if not has_fused_conv(weight, geometry):
        return _vendor.apply(input, _vendor.part_of(weight, weights), geometry)

    def fused() -> Tensor:
        return ops.conv_apply(input, weight, weights, *geometry[:3], geometry.groups, _tensor_cores(input.dtype))

    def vendor() -> Tensor:
        return _vendor.apply(input, _vendor.part_of(weight, weights), geometry)

    return tuning.tuner.run(_key("apply", input, weight, geometry, weights), input, fused, vendor)[0]


def weight_gradient(
    multiplier: Tensor,
    factors: Factors,
    input: Tensor,
    weight: Tensor,
    geometry: ConvGeometry,
    epsilon: float = 0.0,
) -> Tensor:
    """The gradient of <s, W input> for W, s made from the multiplier."""
    if not has_fused_conv(weight, geometry):
        made = _vendor.scaled(multiplier, *factors, epsilon)
        return _vendor.weight_gradient(made, input, weight, geometry)

    def fused() -> Tensor:
        return ops.conv_weight_gradient(
            multiplier, *factors, input, weight.shape[2:], *geometry[:3], geometry.groups, epsilon,
            _tensor_cores(multiplier.dtype),
        )  # fmt: skip

    def vendor() -> Tensor:
        made = _vendor.scaled(multiplier, *factors, epsilon)
        return _vendor.weight_gradient(made, input, weight, geometry)

    given = (f is not None for f in factors)
    key = _key("weight", multiplier, weight, geometry, input.shape[2:], factors.batch, *given)
    return tuning.tuner.run(key, multiplier, fused, vendor)[0]
