"""Convolutions on the CPU by other routes than ATen's, for the shapes where those are faster (docs/performance.md has the figures).

- 1x1: a batched matrix product, which spares the copies of ATen's own.
- Few output positions, large weights (the last stages of a network): one matrix product over all images. oneDNN rearranges the whole
  weight in every call, a product reads it as it lies.
- Strided with few input channels (a stem): the gradient for the input as a convolution at the output's resolution that makes all
  stride x stride sub-pixels as channels.
- Few images of middling planes: the weight's gradient as one convolution with images and channels changed about.
- One, two, or (7x7) four to six input channels: the weight's gradient by threes, for which oneDNN has kernels of their own.

Every function returns None where ATen is the better choice.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .geometry import ConvGeometry

Route = Literal["pointwise", "product", "subpixel", "swapped", "threes"]
Purpose = Literal["data", "apply", "weight"]

_convolution_backward = torch.ops.aten.convolution_backward.default
_LARGE_WEIGHT = 1 << 19  # elements
_FEW_POSITIONS = {"data": 64, "apply": 128, "weight": 512}  # output positions of all images together
_FEW_CHANNELS = 8
_DTYPES = (torch.float32, torch.float64)


def data_gradient(s: Tensor, weight: Tensor, input_size: torch.Size, geometry: ConvGeometry) -> Tensor | None:
    """W^T s, (N, C_in, *input_size)."""
    route = _route("data", s, weight, geometry)
    if route == "pointwise":
        return _pointwise(weight.flatten(1).t(), s)
    if route == "product":
        # Positions ahead of channels: BLAS is up to ten times slower where a handful of positions are the columns.
        columns = (_positions(s) @ weight.flatten(1)).view(s.shape[0], s[0, 0].numel(), -1).transpose(1, 2)
        if _is_pointwise(weight.shape, geometry):
            return columns.reshape(s.shape[0], -1, *input_size).contiguous()
        return F.fold(columns, input_size, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride)
    return _subpixel(s, weight, input_size, geometry) if route == "subpixel" else None


def apply(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor | None:
    """W a, (N, C_out, ...)."""
    route = _route("apply", input, weight, geometry)
    if route == "pointwise":
        return _pointwise(weight.flatten(1), input)
    if route != "product":
        return None
    unfolded = input if _is_pointwise(weight.shape, geometry) else _unfolded(input, weight, geometry)
    result = _positions(unfolded) @ weight.flatten(1).t()
    size = geometry.output_size(input.shape, weight.shape)
    return result.view(input.shape[0], *size, -1).movedim(-1, 1).contiguous()


def weight_gradient(grad_output: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor | None:
    """The gradient of <grad_output, W input> for W."""
    route = _route("weight", grad_output, weight, geometry)
    if route is None or not input.is_contiguous():
        return None
    if route == "threes":
        return _by_threes(grad_output, input, weight, geometry)
    if route == "swapped":
        inputs, grads = (t.transpose(0, 1).contiguous() for t in (input, grad_output))
        return torch.convolution(inputs, grads, None, *geometry).transpose(0, 1).contiguous()
    # Into a tensor that nothing else views, so that autograd adds the block's other weight gradient in place.
    gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    torch.mm(_rows(grad_output), _columns(input, weight, geometry).t(), out=gradient.view(weight.shape[0], -1))
    return gradient


def _route(purpose: Purpose, values: Tensor, weight: Tensor, geometry: ConvGeometry) -> Route | None:
    route = _choose(purpose, values.shape, weight.shape, geometry)
    if route is None or not values.is_cpu or not values.is_contiguous() or values.dtype not in _DTYPES:
        return None
    return route


@lru_cache(maxsize=4096)
def _choose(purpose: Purpose, values: torch.Size, weight: torch.Size, geometry: ConvGeometry) -> Route | None:
    if geometry.transposed or geometry.groups != 1 or not values.numel():
        return None
    size = values[2:] if purpose != "apply" else geometry.output_size(values, weight)
    plane, pointwise = len(weight) == 4, _is_pointwise(weight, geometry)
    positions = values[0] * torch.Size(size).numel()
    if positions <= _FEW_POSITIONS[purpose] and weight.numel() >= _LARGE_WEIGHT:
        if pointwise and purpose != "weight" and positions <= _FEW_POSITIONS["data"]:
            return "product"
        if plane and not pointwise:
            return "product"
    if pointwise:
        return "pointwise" if purpose != "weight" else None
    if not plane or weight[0] < 2 * _FEW_CHANNELS:
        return None
    if purpose == "weight":
        wide = weight[2:].numel() >= 49
        if weight[1] in (1, 2) or (wide and weight[1] in (4, 5, 6)):
            return "threes"
        return "swapped" if _swaps(values, weight, geometry) else None
    strided = geometry.stride[0] == geometry.stride[1] > 1 and max(geometry.dilation) == 1
    return "subpixel" if purpose == "data" and strided and weight[1] <= _FEW_CHANNELS else None


def _swaps(values: torch.Size, weight: torch.Size, geometry: ConvGeometry) -> bool:
    """Whether oneDNN's convolution over images as channels is faster than its weight gradient."""
    plane = values[2:].numel()
    middling = (14**2 if values[0] > 1 else 28**2) <= plane <= 64**2 and values[0] <= 4
    dense = max(geometry.stride) == max(geometry.dilation) == 1 and min(weight[:2]) >= 32
    return middling and dense and weight.numel() * plane * values[0] >= 1 << 28


def _is_pointwise(weight: torch.Size, geometry: ConvGeometry) -> bool:
    return weight[2:].numel() == 1 and max(geometry.stride) == 1 and max(geometry.padding) == 0


def _pointwise(matrix: Tensor, values: Tensor) -> Tensor:
    # bmm, not matmul, which would fold batch and positions together and copy both ways.
    product = torch.bmm(matrix.expand(values.shape[0], -1, -1), values.flatten(2))
    return product.view(values.shape[0], -1, *values.shape[2:])


def _rows(values: Tensor) -> Tensor:
    """(N, C, ...) -> (C, N * positions)."""
    return values.flatten(2).movedim(0, 1).flatten(1)


def _positions(values: Tensor) -> Tensor:
    """(N, C, ...) -> (N * positions, C)."""
    return values.flatten(2).transpose(1, 2).flatten(0, 1)


def _unfolded(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """What each output position reads, (N, C_in * kernel, positions)."""
    return F.unfold(input, weight.shape[2:], geometry.dilation, geometry.padding, geometry.stride)


def _columns(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """What each output position reads, (C_in * kernel, N * positions)."""
    if _is_pointwise(weight.shape, geometry):
        return _rows(input)
    return _rows(_unfolded(input, weight, geometry))


def _by_threes(grad_output: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    like = weight.new_empty((weight.shape[0], 3, *weight.shape[2:]))
    parts = []
    for part in input.split(3, 1):
        missing = 3 - part.shape[1]
        three = F.pad(part, (0, 0, 0, 0, 0, missing)) if missing else part.contiguous()
        gradient = _convolution_backward(grad_output, three, like, None, *geometry, [False, True, False])[1]
        parts.append(gradient[:, : part.shape[1]])
    return torch.cat(parts, 1)


def _subpixel(s: Tensor, weight: Tensor, input_size: torch.Size, geometry: ConvGeometry) -> Tensor:
    stride = geometry.stride[0]
    channels_out, channels_in, *kernel = weight.shape
    # Input row y = stride * q + r - padding takes s[q - u] with tap r + stride * u: for each remainder r a convolution of its own.
    taps = [-(-k // stride) for k in kernel]
    height, width = taps
    padded = F.pad(weight, (0, width * stride - kernel[1], 0, height * stride - kernel[0]))
    phases = padded.view(channels_out, channels_in, height, stride, width, stride).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    rows, columns = (
        (n - 1 + p) // stride + 1 for n, p in zip(input_size, geometry.padding, strict=True)
    )  # of q that some y needs
    ends = (columns - s.shape[3], rows - s.shape[2])
    around = F.pad(s, (width - 1, ends[0], height - 1, ends[1])) if ends != (width - 1, height - 1) else s
    padding = 0 if around is not s else [height - 1, width - 1]
    image = F.conv2d(around, phases.reshape(-1, channels_out, height, width), padding=padding)
    top, left = geometry.padding
    image = F.pixel_shuffle(image, stride)[:, :, top : top + input_size[0], left : left + input_size[1]]
    return image.contiguous()
