"""Decides how a convolution is computed; nothing else does.

The vendor's convolution (oneDNN, cuDNN) through ATen with our elementwise kernels around it. On the CPU other products or convolutions
where oneDNN is slow: stems, patches, depthwise weight gradients, few pixels; and oneDNN where ATen passes it by. On CUDA tensors our fused
kernel where ``LRPKERNELS_CONV`` asks for it, or for :mod:`.tuner` to find the faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from . import conv_columns, conv_cpu, tuner
from .dense import prefers_onednn, product
from .geometry import ConvGeometry, Weights, check_part
from .layout import is_channels_last, per_channel, select_by_sign, times
from .pointwise import Scaled

_convolution = torch.convolution  # that of torch.ops takes 3 us more
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
        ops.fused_device is not None  # asked first: it saves the CPU the other questions
        and tuner.current.mode != "vendor"
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
    if not picks_parts(weight, geometry):
        return _pulled(scaled.made(), weight, weights, epilogue, input, geometry)

    def vendor() -> Tensor:
        return _pulled(scaled.made(), weight, weights, epilogue, input, geometry)

    def fused() -> Tensor:
        one = scaled.with_one_eps()
        return ops.conv_relevance(
            *one[:6], weight, weights, *epilogue, input.shape[2:], *geometry[:3], geometry.groups, one.eps,
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
    if not picks_parts(weight, geometry):
        return _weight_gradient(scaled.made(), input, weight, geometry)

    def vendor() -> Tensor:
        return _weight_gradient(scaled.made(), input, weight, geometry)

    def fused() -> Tensor:
        one = scaled.with_one_eps()
        return ops.conv_weight_gradient(
            *one[:6], input, weight.shape[2:], *geometry[:3], geometry.groups, one.eps,
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
    made = None
    if conv_cpu.is_uniform(input, geometry):
        made = conv_cpu.applied_to_uniform(input, weight, geometry)
    elif _is_plain(input):
        form = _form(weight.shape, geometry)
        if form.is_dense and _has_few_pixels(input):
            made = conv_cpu.planes(product(conv_cpu.rows(input), weight.flatten(1).t()), input.shape)
        elif form.is_heavy and _fits_columns(input.shape[0] * form.pixels(input.shape), form.numbers, 1 << 14):
            made = conv_columns.apply(input, weight, geometry)
        elif _is_passed_by(input.shape, form):
            return _by_onednn(input, weight, bias, geometry)
    if made is None:
        return _convolution(input, weight, bias, *geometry)
    return made if bias is None else made.add_(per_channel(bias, made.dim()))


def _data_gradient(s: Tensor, weight: Tensor, input: Tensor, geometry: ConvGeometry) -> Tensor:
    """W^T s for a convolution whose input looked like ``input``."""
    if _is_plain(s):
        form = _form(weight.shape, geometry)
        if form.is_patches:
            return conv_cpu.untiled(s, weight, input.shape[2:])
        if form.is_dense and _has_few_pixels(s):
            return conv_cpu.planes(product(conv_cpu.rows(s), weight.flatten(1)), s.shape)
        if form.block is not None and s.numel() >= _FEW_NUMBERS and (form.is_strided or _has_wide_registers()):
            return conv_cpu.by_blocks(s, weight, input.shape[2:], geometry, form.block)
        alone = s.shape[0] == 1 and _is_passed_by(torch.Size((1, weight.shape[1], *input.shape[2:])), form)
        if form.is_heavy and _fits_columns(_pixels(s), form.numbers, 1 << (13 if alone else 15), _LEAST_PULLED):
            return conv_columns.data_gradient(s, weight, tuple(input.shape[2:]), geometry)
        if alone and form.mirror is not None and len(geometry.stride) == 3:
            mirrored = weight.flip([*range(2, weight.dim())]).transpose(0, 1).contiguous()
            return _by_onednn(s, mirrored, None, form.mirror)
    channels = weight.shape[0] if geometry.transposed else weight.shape[1] * geometry.groups
    if input.shape[0] != s.shape[0] or input.shape[1] != channels or input.dtype != s.dtype:
        # Several targets (the batch is that of s), stacked weights, or autocast: an uninitialized tensor of the right form will do.
        format = torch.channels_last if is_channels_last(input) else torch.contiguous_format
        shape = (s.shape[0], channels, *input.shape[2:])
        input = torch.empty(shape, dtype=s.dtype, device=s.device, memory_format=format)
    return _convolution_backward(s, input, weight, None, *geometry, [True, False, False])[0]


def _weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W."""
    if conv_cpu.is_uniform(input, geometry):
        return conv_cpu.weight_gradient_of_uniform(s, input, weight, geometry)
    if _is_plain(s):
        form = _form(weight.shape, geometry)
        if form.is_depthwise:
            return conv_cpu.depthwise_weight_gradient(s, input, weight, geometry)
        if form.is_pointwise and _has_few_pixels(s):
            read = input[conv_cpu.everywhere(slice(None, None, stride) for stride in geometry.stride)]
            return product(conv_cpu.rows(s).t(), conv_cpu.rows(read)).view(weight.shape)
        if form.is_stem and s.numel() >= _FEW_NUMBERS and _has_wide_registers():
            return conv_cpu.weight_gradient_by_colours(s, input, weight, geometry)
        if form.is_heavy and _fits_columns(_pixels(s), form.numbers, 1 << 11, elsewhere=18_000):
            return conv_columns.weight_gradient(s, input, weight, geometry)
        if prefers_onednn() and _is_passed_by(input.shape, form) and form.numbers * _pixels(s) >= 2 * _FEW_PRODUCTS:
            return conv_columns.weight_gradient(s, input, weight, geometry)
    return _convolution_backward(s, input, weight, None, *geometry, [False, True, False])[1]


# -- ways of our own on the CPU, each many times as fast as oneDNN (docs/performance.md) where its condition holds, and slower elsewhere --

_FEW_CHANNELS = 12  # of an image: colours, times the weight sets of z^B
_FEW_PIXELS = 64  # of a whole batch
_VENDORS_TAPS = 9  # depthwise kernels up to 3x3 have code of their own in oneDNN
_LANES = 16  # numbers in a vector register
_FEW_NUMBERS = 1 << 16  # where setting up costs more than it saves
_FEW_PRODUCTS = 1 << 22  # likewise
_MANY_WEIGHTS = 1 << 17
_LEAST_PULLED = 1 << 19  # weights of a transposed map by columns


def _is_plain(t: Tensor) -> bool:
    return t.dtype is torch.float32 and t.is_cpu


def _pixels(t: Tensor) -> int:
    return t.shape[0] * t.shape[2:].numel()


def _has_few_pixels(t: Tensor) -> bool:
    """Whether a 1x1 convolution here is a product of few rows with a weight that is larger: oneDNN would put that in order each time."""
    return _pixels(t) <= _FEW_PIXELS


class _Form(NamedTuple):
    """What the sizes of a weight, and how it slides, say of the ways that are open to a convolution of float32 on the CPU.

    Attributes:
        is_pointwise, is_dense: 1x1, with or without stride; without one.
        is_patches: windows side by side on few channels.
        is_depthwise: with kernels for which oneDNN has no weight gradient of their own.
        is_stem: on images of a few more channels than colours, in two dimensions.
        is_whole: every output channel reads all input channels, at more than one place.
        is_heavy: likewise, with many weights.
        is_strided: it leaves out places.
        block: the pixels that become channels in :func:`.conv_cpu.by_blocks`, per dimension; None: that is no faster.
        mirror: how the transposed map slides, if it is a convolution like this.
        slide: how it slides.
        weight: the sizes.
        numbers: how many weights there are.
    """

    is_pointwise: bool
    is_dense: bool
    is_patches: bool
    is_depthwise: bool
    is_stem: bool
    is_whole: bool
    is_heavy: bool
    is_strided: bool
    block: tuple[int, ...] | None
    mirror: ConvGeometry | None
    slide: ConvGeometry
    weight: torch.Size
    numbers: int

    def pixels(self, input: torch.Size) -> int:
        """Of one image's output."""
        return math.prod(self.slide.output_size(input, self.weight))


@lru_cache(4096)
def _form(weight: torch.Size, geometry: ConvGeometry) -> _Form:
    channels, kernel = weight[1], weight[2:]
    taps = kernel.numel()
    strided, pointwise = max(geometry.stride) > 1, geometry.is_pointwise(weight)
    whole = not geometry.transposed and geometry.groups == 1 and taps > 1
    reach = [dilation * (k - 1) for k, dilation in zip(kernel, geometry.dilation, strict=True)]
    padding = tuple(r - p for r, p in zip(reach, geometry.padding, strict=True))
    mirror = geometry._replace(padding=padding) if whole and not strided and min(padding) >= 0 else None
    return _Form(
        is_pointwise=pointwise,
        is_dense=pointwise and not strided,
        is_patches=channels <= _FEW_CHANNELS and geometry.is_tiling(weight),
        is_depthwise=geometry.is_depthwise(weight) and taps > _VENDORS_TAPS,
        is_stem=whole and len(kernel) == 2 and min(kernel) >= 3 and conv_cpu.COLOURS < channels < _LANES,
        is_whole=whole,
        is_heavy=whole and weight.numel() >= _MANY_WEIGHTS,
        is_strided=strided,
        block=_block(weight, geometry) if whole else None,
        mirror=mirror,
        slide=geometry,
        weight=weight,
        numbers=weight.numel(),
    )


def _fits_columns(
    pixels: int, weights: int, share: int, least: int = _MANY_WEIGHTS, elsewhere: int | None = None
) -> bool:
    """Whether a product over all images is faster (:mod:`.conv_columns`): many weights beside few pixels.

    Args:
        share: weights for each pixel from which on it is, where there are more than 64 pixels.
        least: weights.
        elsewhere: share where products are not oneDNN's (and many more weights); None: it is not faster there.
    """
    if not pixels:
        return False
    if not prefers_onednn():
        return elsewhere is not None and weights >= max(1 << 20, elsewhere * pixels)
    return weights >= least and (weights >= share * pixels or (least == _MANY_WEIGHTS and pixels <= _FEW_PIXELS))


def _is_passed_by(shape: torch.Size, form: _Form) -> bool:
    """Whether ATen multiplies an input of these sizes by matrices, and oneDNN's convolution would be faster.

    ATen's own condition: single images of few numbers. In three dimensions that takes up to three times as long.
    """
    return (
        shape[0] == 1
        and form.is_whole
        and 0 < shape[:4].numel() <= 20480
        and min(form.weight[-2:]) <= 3
        and len(shape) > 3
        and form.numbers * form.pixels(shape) >= _FEW_PRODUCTS
        and torch.backends.mkldnn.is_available()
        and torch._C._get_mkldnn_enabled()
    )


def _by_onednn(input: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    return torch.mkldnn_convolution(input, weight, bias, geometry.padding, geometry.stride, geometry.dilation, 1)


def _block(weight: torch.Size, geometry: ConvGeometry) -> tuple[int, ...] | None:
    """The pixels that become channels in :func:`.conv_cpu.by_blocks`, per dimension; None where that is no faster."""
    channels, kernel = weight[1], weight[2:]
    pays = min(kernel) >= (5 if max(geometry.stride) > 1 else 3)  # without stride in wide registers alone
    if not pays or weight[0] < _LANES or max(geometry.dilation) > 1:
        return None
    if any(p >= k for p, k in zip(geometry.padding, kernel, strict=True)):
        return None
    block = list(geometry.stride)
    while channels * math.prod(block) * 2 <= _LANES:
        block[max(range(len(block)), key=lambda d: (-block[d], d))] *= 2
    return tuple(block) if 1 < math.prod(block) <= 2 * _LANES // channels else None


@cache
def _has_wide_registers() -> bool:
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


def _pulled(
    s: Tensor, weight: Tensor, weights: Weights, epilogue: Epilogue, like: Tensor, geometry: ConvGeometry
) -> Tensor:
    """W^T s with the weights that ``weights`` names."""
    if weights == Weights.ALL:
        return _data_gradient(s, weight, like, geometry)
    if weights in (Weights.POSITIVE, Weights.NEGATIVE):
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
