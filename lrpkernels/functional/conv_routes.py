"""Decides how a convolution is computed; nothing else does.

The vendor's convolution (oneDNN, cuDNN) through ATen with our elementwise kernels around it. On the CPU other products or convolutions
where oneDNN is slow: stems, patches, depthwise weight gradients, 1x1 on few pixels. On CUDA tensors our fused kernel where
``LRPKERNELS_CONV`` asks for it, or for :mod:`.tuner` to find the faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from . import tuner
from .dense import product
from .geometry import ConvGeometry, Weights, check_part
from .layout import WIDE, is_channels_last, per_channel, select_by_sign, times
from .pointwise import Scaled

_convolution = torch.ops.aten.convolution.default
_convolution_backward = torch.ops.aten.convolution_backward.default


class Epilogue(NamedTuple):
    """Applied to W^T s before writing: the layer's input a [B, C_in, ...] and, for ``Weights.BOX``, the pixels' bounds [C_in]."""

    input: Tensor | None = None
    low: Tensor | None = None
    high: Tensor | None = None


NO_EPILOGUE = Epilogue()


def picks_parts(weight: Tensor, geometry: ConvGeometry) -> bool:
    """Whether kernels may pick W+ and W- as they load W: fused ones where asked for, in one or two dimensions, not transposed."""
    return (
        tuner.current.mode != "vendor"
        and ops.are_fused_for(weight)
        and not geometry.transposed
        and weight.dim() in (3, 4)
    )


def relevance(
    scaled: Scaled,
    weight: Tensor,
    input: Tensor,
    geometry: ConvGeometry,
    weights: Weights = Weights.ALL,
    epilogue: Epilogue = NO_EPILOGUE,
) -> Tensor:
    """W^T s, (T*B, C_in, ...); only sizes and layout of ``input`` are read."""

    def vendor() -> Tensor:
        return _pulled(scaled.made(), weight, weights, epilogue, input, geometry)

    if not picks_parts(weight, geometry):
        return vendor()
    scaled = scaled.with_one_eps()

    def fused() -> Tensor:
        return ops.conv_relevance(
            *scaled[:6], weight, weights, *epilogue, input.shape[2:], *geometry[:3], geometry.groups, scaled.eps,
            _tensor_cores(scaled.multiplier.dtype),
        )  # fmt: skip

    given = (*(f is not None for f in scaled[1:6]), weights)
    key = _key("relevance", scaled.multiplier, weight, geometry, input.shape[2:], scaled.batch, *given)
    return _tuned(key, scaled.multiplier, fused, vendor)


def apply(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    geometry: ConvGeometry,
    weights: Weights = Weights.ALL,
) -> Tensor:
    """W a + b with W, W+ or W-, (N, C_out, ...)."""
    if not picks_parts(weight, geometry):
        return _applied(input, part_of(weight, weights), bias, geometry)

    def fused() -> Tensor:
        return ops.conv_apply(input, weight, weights, *geometry[:3], geometry.groups, _tensor_cores(input.dtype))

    def vendor() -> Tensor:
        return _convolution(input, part_of(weight, weights), None, *geometry)

    found = _tuned(_key("apply", input, weight, geometry, weights), input, fused, vendor)
    return found if bias is None else found.add_(per_channel(bias, found.dim()))


def weight_gradient(scaled: Scaled, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W, of which only sizes and layout are read."""

    def vendor() -> Tensor:
        return _weight_gradient(scaled.made(), input, weight, geometry)

    if not picks_parts(weight, geometry):
        return vendor()
    scaled = scaled.with_one_eps()

    def fused() -> Tensor:
        return ops.conv_weight_gradient(
            *scaled[:6], input, weight.shape[2:], *geometry[:3], geometry.groups, scaled.eps,
            _tensor_cores(scaled.multiplier.dtype),
        )  # fmt: skip

    given = (f is not None for f in scaled[1:6])
    key = _key("weight", scaled.multiplier, weight, geometry, input.shape[2:], scaled.batch, *given)
    return _tuned(key, scaled.multiplier, fused, vendor)


def part_of(weight: Tensor, weights: Weights) -> Tensor:
    """W, W+ or W-."""
    if weights == Weights.ALL:
        return weight
    check_part("conv_apply", weights)
    return weight.clamp(min=0) if weights == Weights.POSITIVE else weight.clamp(max=0)


def _tuned(key: tuple[Any, ...], like: Tensor, fused: Callable[[], Tensor], vendor: Callable[[], Tensor]) -> Tensor:
    return tuner.current.run(key, like, fused, vendor)[0]


def _tensor_cores(dtype: torch.dtype) -> bool:
    return dtype != torch.float32 or tuner.allows_tf32()


def _key(op: str, values: Tensor, weight: Tensor, geometry: ConvGeometry, *rest: Any) -> tuple[Any, ...]:
    """Everything that the speed of a convolution depends on."""
    layout = "NHWC" if is_channels_last(values) else "NCHW"
    cores = _tensor_cores(values.dtype)
    sizes = (values.shape, weight.shape, *geometry[:3], geometry[5])
    return (op, values.device.index, values.dtype, layout, *sizes, cores, *rest)


# -- the vendor's convolution -------------------------------------------------------------------------------------------------------


def _applied(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """W a + b."""
    if _is_uniform(input, geometry):
        made = _applied_to_uniform(input, weight, geometry)
        return made if bias is None else made.add_(per_channel(bias, made.dim()))
    if geometry.is_pointwise(weight.shape) and max(geometry.stride) == 1 and _has_few_pixels(input):
        made = _planes(product(_rows(input), weight.flatten(1).t()), input.shape)
        return made if bias is None else made.add_(per_channel(bias, made.dim()))
    return _convolution(input, weight, bias, *geometry)


def _data_gradient(s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
    """W^T s for a convolution whose input looked like ``input``."""
    if weight.shape[1] <= _FEW_CHANNELS and geometry.is_tiling(weight.shape) and _is_plain(s):
        return _untiled(s, weight, input.shape[2:])
    if geometry.is_pointwise(weight.shape) and max(geometry.stride) == 1 and _has_few_pixels(s):
        return _planes(product(_rows(s), weight.flatten(1)), s.shape)
    block = _block(s, weight, geometry)
    if block is not None:
        return _by_blocks(s, weight, input.shape[2:], geometry, block)
    channels = weight.shape[0] if geometry.transposed else weight.shape[1] * geometry.groups
    if input.shape[0] != s.shape[0] or input.shape[1] != channels or input.dtype != s.dtype:
        # Several targets (the batch is that of s), stacked weights, or autocast: an uninitialized tensor of the right form will do.
        format = torch.channels_last if is_channels_last(input) else torch.contiguous_format
        shape = (s.shape[0], channels, *input.shape[2:])
        input = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=format)
    return _convolution_backward(s, input, weight, None, *geometry, [True, False, False])[0]


def _weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W."""
    if _is_uniform(input, geometry):
        return _weight_gradient_of_uniform(s, input, weight, geometry)
    if geometry.is_depthwise(weight.shape) and weight[0].numel() > _VENDORS_TAPS and _is_plain(s):
        return _depthwise_weight_gradient(s, input, weight, geometry)
    if geometry.is_pointwise(weight.shape) and _has_few_pixels(s):
        read = input[_everywhere(slice(None, None, stride) for stride in geometry.stride)]
        return product(_rows(s).t(), _rows(read)).view(weight.shape)
    return _convolution_backward(s, input, weight, None, *geometry, [False, True, False])[1]


# -- ways of our own on the CPU, each many times as fast as oneDNN (docs/performance.md) where its condition holds, and slower elsewhere --

_FEW_CHANNELS = 12  # of an image: colours, times the weight sets of z^B
_FEW_PIXELS = 64  # of a whole batch
_VENDORS_TAPS = 9  # depthwise kernels up to 3x3 have code of their own in oneDNN
_LANES = 16  # numbers in a vector register
_FEW_NUMBERS = 1 << 16  # where setting up costs more than it saves


def _is_plain(t: Tensor) -> bool:
    return t.device.type == "cpu" and t.dtype == torch.float32


def _has_few_pixels(t: Tensor) -> bool:
    """Whether a 1x1 convolution here is a product of few rows with a weight that is larger: oneDNN would put that in order each time."""
    return _is_plain(t) and t.shape[0] * t.shape[2:].numel() <= _FEW_PIXELS


def _everywhere(places: Iterable[slice]) -> tuple[Any, ...]:
    """The index of these places in all images and channels."""
    return (..., *places)


def _rows(t: Tensor) -> Tensor:
    """(N, C, ...) as a matrix of pixels and channels."""
    return t.flatten(2).transpose(1, 2).reshape(-1, t.shape[1])


def _planes(rows: Tensor, like: torch.Size) -> Tensor:
    """The matrix of pixels and channels as (N, C, ...), contiguous."""
    planes = rows.view(like[0], like[2:].numel(), rows.shape[1]).transpose(1, 2)
    return planes.contiguous().view(like[0], rows.shape[1], *like[2:])


def _depthwise_weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """By a depthwise convolution of every image's channel with its s as the kernel, which oneDNN is fast at.

    Stride and dilation change places; images are added up afterwards.
    """
    kernels, spatial = s.shape[0] * s.shape[1], (1,) * len(geometry.stride)
    images = input.reshape(1, kernels, *input.shape[2:])
    slides = s.reshape(kernels, 1, *s.shape[2:])
    slide = ConvGeometry(geometry.dilation, geometry.padding, geometry.stride, False, (0,) * len(spatial), kernels)
    found = _convolution(images, slides, None, *slide)
    # Where windows leave out the last pixels of an image, there is room for more taps than the kernel has.
    taps = found[_everywhere(slice(size) for size in weight.shape[2:])]
    return taps.reshape(s.shape[0], *weight.shape).sum(0)


def _block(s: Tensor, weight: Tensor, geometry: ConvGeometry) -> tuple[int, ...] | None:
    """The pixels that become channels in :func:`_by_blocks`, per dimension; None where that is no faster."""
    channels, kernel = weight.shape[1], weight.shape[2:]
    simple = not geometry.transposed and geometry.groups == 1 and max(geometry.dilation) == 1
    if not (simple and _is_plain(s) and s.numel() >= _FEW_NUMBERS and weight.shape[0] >= _LANES and min(kernel) >= 3):
        return None
    strided = max(geometry.stride) > 1
    pays = min(kernel) >= 5 if strided else _has_wide_registers()
    if not pays or any(p >= k for p, k in zip(geometry.padding, kernel, strict=True)):
        return None
    block = list(geometry.stride)
    while channels * math.prod(block) * 2 <= _LANES:
        block[max(range(len(block)), key=lambda d: (-block[d], d))] *= 2
    return tuple(block) if 1 < math.prod(block) <= 2 * _LANES // channels else None


@cache
def _has_wide_registers() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _by_blocks(s: Tensor, weight: Tensor, size: torch.Size, geometry: ConvGeometry, block: tuple[int, ...]) -> Tensor:
    """W^T s of a stem, as a convolution of s whose output channels are the pixels of a block, put back in their places.

    An image has few channels, which leave most of a vector register empty, and a strided convolution's transposed one multiplies zeros.
    Pixel i = m q + f of block q reads s at j = r q + t, r = m / stride, with the weight of tap k = f + padding - stride t.
    """
    spatial = len(block)
    outputs, channels = weight.shape[:2]
    taps, strides, paddings, kept = [], [], [], []
    moved = torch.constant_pad_nd(weight, (0, 1) * spatial)  # the last tap is 0, for those that a pixel doesn't read
    for d, (m, k, stride, padding) in enumerate(
        zip(block, weight.shape[2:], geometry.stride, geometry.padding, strict=True)
    ):
        blocks, step = -(-size[d] // m), m // stride
        first, last = -((k - 1 - padding) // stride), (m - 1 + padding) // stride
        behind = max(0, step * (blocks - 1) + last + 1 - s.shape[2 + d])
        more = max(0, -(-(behind + first) // step))  # whole steps, so that both ends are padded alike
        tap = torch.arange(m)[:, None] + padding - stride * torch.arange(first, last + 1)
        moved = moved.index_select(2 + d, tap.where((tap >= 0) & (tap < k), k).flatten())
        taps.append(last + 1 - first)
        strides.append(step)
        paddings.append(step * more - first)
        kept.append(slice(more, more + blocks))
    moved = moved.view(outputs, channels, *(n for pair in zip(block, taps, strict=True) for n in pair))
    order = (1, *range(2, 2 * spatial + 2, 2), 0, *range(3, 2 * spatial + 3, 2))
    slide = ConvGeometry(tuple(strides), tuple(paddings), (1,) * spatial, False, (0,) * spatial, 1)
    found = _convolution(s, moved.permute(order).reshape(-1, outputs, *taps), None, *slide)[_everywhere(kept)]
    found = found.reshape(s.shape[0], channels, *block, *found.shape[2:])
    order = (0, 1, *(dim for d in range(spatial) for dim in (2 + spatial + d, 2 + d)))
    image = found.permute(order).reshape(
        s.shape[0], channels, *(m * n for m, n in zip(block, found.shape[2 + spatial :], strict=True))
    )
    return image[_everywhere(slice(n) for n in size)].contiguous()


def _is_uniform(input: Tensor, geometry: ConvGeometry) -> bool:
    """Whether planes are seen to hold one number each: a bound of the pixels, spread over an image without copies."""
    if input.device.type != "cpu" or input.dtype not in WIDE or geometry.transposed or geometry.groups > 1:
        return False
    return input.shape[2:].numel() > 1 and not any(
        stride for stride, n in zip(input.stride()[2:], input.shape[2:], strict=True) if n > 1
    )


def _reached(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> list[Tensor]:
    """Per dimension: 1 where an output's tap lies within the image, 0 in the padding, (outputs, taps)."""
    found = []
    for n, k, out, stride, padding, dilation in zip(
        input.shape[2:], weight.shape[2:], geometry.output_size(input.shape, weight.shape), *geometry[:3], strict=True
    ):
        at = stride * torch.arange(out)[:, None] - padding + dilation * torch.arange(k)
        found.append(((at >= 0) & (at < n)).to(input.dtype))
    return found


def _along_dimensions(t: Tensor, matrices: list[Tensor]) -> Tensor:
    """(N, C, n_1, n_2, ...), a matrix applied along each n, the last one first."""
    *ahead, last = matrices
    t = t @ last.t()
    for d in reversed(range(len(ahead))):
        moved = ahead[d] @ t.reshape(-1, t.shape[2 + d], t.shape[3 + d :].numel())
        t = moved.view(*t.shape[: 2 + d], ahead[d].shape[0], *t.shape[3 + d :])
    return t


def _applied_to_uniform(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """W a where a does not vary within its planes: a sum of taps, whose borders are products over the dimensions."""
    numbers = input.flatten(2)[..., 0]
    taps = torch.einsum("nc,ocp->nop", numbers, weight.flatten(2)).view(len(input), len(weight), *weight.shape[2:])
    return _along_dimensions(taps, _reached(input, weight, geometry))


def _weight_gradient_of_uniform(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    numbers = input.flatten(2)[..., 0]
    taps = _along_dimensions(s, [reached.t() for reached in _reached(input, weight, geometry)])
    return torch.einsum("nc,nop->ocp", numbers, taps.flatten(2)).view(weight.shape)


def _untiled(s: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """W^T s where every pixel is read by one window at most (a patch embedding): one matrix product, then the patches put together."""
    kernel, windows = weight.shape[2:], s.shape[2:]
    spatial = len(kernel)
    order = [dim for k in range(spatial) for dim in (1 + k, 2 + spatial + k)]
    patches = product(_rows(s), weight.flatten(1)).view(s.shape[0], *windows, *weight.shape[1:])
    image = patches.permute(0, 1 + spatial, *order).reshape(
        s.shape[0], weight.shape[1], *(n * k for n, k in zip(windows, kernel, strict=True))
    )
    if image.shape[2:] == size:
        return image
    # Pixels behind the last window are read by none.
    behind = [pad for n, have in zip(reversed(size), reversed(image.shape), strict=False) for pad in (0, n - have)]
    return torch.constant_pad_nd(image, behind)


def _pulled(
    s: Tensor, weight: Tensor, weights: Weights, epilogue: Epilogue, like: Tensor, geometry: ConvGeometry
) -> Tensor:
    """W^T s with the weights that ``weights`` names."""
    if weights in (Weights.ALL, Weights.POSITIVE, Weights.NEGATIVE):
        return _data_gradient(s, part_of(weight, weights), like, geometry)
    input, low, high = epilogue
    assert input is not None
    up, down = (
        _data_gradient(s, part_of(weight, part), like, geometry) for part in (Weights.POSITIVE, Weights.NEGATIVE)
    )
    if weights == Weights.BOX:
        assert low is not None and high is not None
        bounds = [per_channel(bound.to(s.dtype), s.dim()) for bound in (low, high)]
        return times(_data_gradient(s, weight, like, geometry), input) - bounds[0] * up - bounds[1] * down
    return select_by_sign(input, up, down) if weights == Weights.SAME_SIGN else select_by_sign(input, down, up)
