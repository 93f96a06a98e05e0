"""Convolutions as one matrix product over all images: for few pixels beside a large weight, which is read as it lies in memory.

The pixels that each output reads become a column (im2col), gathered by an index that depends on sizes alone. oneDNN would put the weight
in order at every call, which takes longer than the arithmetic.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from .dense import product
from .geometry import ConvGeometry

Sizes = tuple[int, ...]


def apply(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """W a, (N, C_out, ...).

    Args:
        input: a, (N, C_in, ...), float32, on the CPU.
        weight: W, (C_out, C_in, ...), likewise.
        geometry: neither transposed nor in groups.
    """
    made = product(weight.flatten(1), _columns(input, weight, geometry))
    size = geometry.output_size(input.shape, weight.shape)
    return made.view(weight.shape[0], input.shape[0], *size).transpose(0, 1).contiguous()


def weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W, of which only sizes are read."""
    return product(_by_channel(s), _columns(input, weight, geometry).t()).view(weight.shape)


def data_gradient(s: Tensor, weight: Tensor, size: Sizes, geometry: ConvGeometry) -> Tensor:
    """W^T s, (N, C_in, *size)."""
    channels, taps, pixels = weight.shape[1], weight.shape[2:].numel(), s.shape[0] * s.shape[2:].numel()
    shares = product(_by_channel(s).t(), weight.flatten(1)).view(pixels, channels, taps)
    # By channel, tap and pixel of s, and a zero for taps that no pixel has.
    parts = s.new_empty(channels, taps * pixels + 1)
    parts[:, -1] = 0
    parts[:, :-1].view(channels, taps, pixels).copy_(shares.permute(1, 2, 0))
    readers = _readers(s.shape[0], size, tuple(s.shape[2:]), tuple(weight.shape[2:]), *geometry[:3])
    total = parts.index_select(1, readers).view(channels, taps, -1).sum(1)
    return total.view(channels, s.shape[0], *size).transpose(0, 1).contiguous()


def _by_channel(t: Tensor) -> Tensor:
    """(N, C, ...) as (C, pixels of all images)."""
    return t.transpose(0, 1).reshape(t.shape[1], -1)


def _columns(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """What each output pixel reads, (C_in * taps, pixels of all images)."""
    kernel = tuple(weight.shape[2:])
    size = tuple(geometry.output_size(input.shape, weight.shape))
    places = _places(input.shape[0], tuple(input.shape[2:]), size, kernel, *geometry[:3])
    padded = torch.constant_pad_nd(_by_channel(input), (0, 1))  # a zero for what lies outside of the images
    return padded.index_select(1, places).view(input.shape[1] * math.prod(kernel), -1)


@lru_cache(64)
def _places(
    images: int, size: Sizes, outputs: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """Where each tap of each output stands among the pixels of all images, (taps * outputs of all images,); behind the last: nowhere."""
    read = []
    for k, out, step, pad, apart in zip(kernel, outputs, stride, padding, dilation, strict=True):
        read.append(torch.arange(k)[:, None] * apart + torch.arange(out) * step - pad)
    inside = [(at >= 0) & (at < n) for at, n in zip(read, size, strict=True)]
    return _index(images, read, inside, size, images * math.prod(size))


@lru_cache(64)
def _readers(
    images: int, size: Sizes, outputs: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes, dilation: Sizes
) -> Tensor:
    """Where the outputs that read a pixel by each tap stand among (taps, outputs of all images); behind the last: none does."""
    read, inside = [], []
    for n, k, out, step, pad, apart in zip(size, kernel, outputs, stride, padding, dilation, strict=True):
        ahead = torch.arange(n) + pad - torch.arange(k)[:, None] * apart
        at = ahead.div(step, rounding_mode="floor")
        read.append(at)
        inside.append((at * step == ahead) & (at >= 0) & (at < out))
    taps, pixels = math.prod(kernel), images * math.prod(outputs)
    found = _index(images, read, inside, outputs, taps * pixels).view(taps, -1)
    ahead = torch.arange(taps)[:, None] * pixels
    return (found + ahead).where(found < taps * pixels, taps * pixels).flatten()


def _index(images: int, read: list[Tensor], inside: list[Tensor], size: Sizes, nowhere: int) -> Tensor:
    """The places (taps, positions) in each dimension as those in (images, *size), by tap, image and position."""
    spatial = len(size)
    at = torch.arange(images).view(*(1,) * spatial, images, *(1,) * spatial) * math.prod(size)
    within = torch.ones_like(at, dtype=torch.bool)
    for d, (places, fits) in enumerate(zip(read, inside, strict=True)):
        shape = [1] * (2 * spatial + 1)
        shape[d], shape[spatial + 1 + d] = places.shape
        at = at + places.view(shape) * math.prod(size[d + 1 :])
        within = within & fits.view(shape)
    return at.where(within, nowhere).flatten()
