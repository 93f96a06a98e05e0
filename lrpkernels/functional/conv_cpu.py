"""Convolutions on the CPU by other products or convolutions, each where oneDNN is slow; :mod:`.conv_routes` decides."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from .dense import product
from .geometry import ConvGeometry
from .layout import WIDE

COLOURS = 3  # channels that oneDNN's weight gradients of images are made for

_convolution = torch.convolution
_convolution_backward = torch.ops.aten.convolution_backward.default


def everywhere(places: Iterable[slice]) -> tuple[Any, ...]:
    """The index of these places in all images and channels."""
    return (..., *places)


def rows(t: Tensor) -> Tensor:
    """(N, C, ...) as a matrix of pixels and channels."""
    return t.flatten(2).transpose(1, 2).reshape(-1, t.shape[1])


def planes(rows: Tensor, like: torch.Size) -> Tensor:
    """The matrix of pixels and channels as (N, C, ...), contiguous."""
    planes = rows.view(like[0], like[2:].numel(), rows.shape[1]).transpose(1, 2)
    return planes.contiguous().view(like[0], rows.shape[1], *like[2:])


def depthwise_weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """By a depthwise convolution of every image's channel with its s as the kernel, which oneDNN is fast at.

    Stride and dilation change places; images are added up afterwards.
    """
    kernels, spatial = s.shape[0] * s.shape[1], (1,) * len(geometry.stride)
    images = input.reshape(1, kernels, *input.shape[2:])
    slides = s.reshape(kernels, 1, *s.shape[2:])
    slide = ConvGeometry(geometry.dilation, geometry.padding, geometry.stride, False, (0,) * len(spatial), kernels)
    found = _convolution(images, slides, None, *slide)
    # Where windows leave out the last pixels of an image, there is room for more taps than the kernel has.
    taps = found[everywhere(slice(size) for size in weight.shape[2:])]
    return taps.reshape(s.shape[0], *weight.shape).sum(0)


def weight_gradient_by_colours(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """Three channels at a time, for which oneDNN has code of its own."""
    parts = [
        _convolution_backward(s, image.contiguous(), part, None, *geometry, [False, True, False])[1]
        for image, part in zip(input.split(COLOURS, 1), weight.split(COLOURS, 1), strict=True)
    ]
    return torch.cat(parts, 1)


def by_blocks(s: Tensor, weight: Tensor, size: torch.Size, geometry: ConvGeometry, block: tuple[int, ...]) -> Tensor:
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
    found = _convolution(s, moved.permute(order).reshape(-1, outputs, *taps), None, *slide)[everywhere(kept)]
    found = found.reshape(s.shape[0], channels, *block, *found.shape[2:])
    order = (0, 1, *(dim for d in range(spatial) for dim in (2 + spatial + d, 2 + d)))
    image = found.permute(order).reshape(
        s.shape[0], channels, *(m * n for m, n in zip(block, found.shape[2 + spatial :], strict=True))
    )
    return image[everywhere(slice(n) for n in size)].contiguous()


def is_uniform(input: Tensor, geometry: ConvGeometry) -> bool:
    """Whether planes are seen to hold one number each: a bound of the pixels, spread over an image without copies."""
    strides = input.stride()
    if 0 not in strides or not input.is_cpu or input.dtype not in WIDE or geometry.transposed or geometry.groups > 1:
        return False
    return input.shape[2:].numel() > 1 and not any(
        stride for stride, n in zip(strides[2:], input.shape[2:], strict=True) if n > 1
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


def applied_to_uniform(input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """W a where a does not vary within its planes: a sum of taps, whose borders are products over the dimensions."""
    numbers = input.flatten(2)[..., 0]
    taps = torch.einsum("nc,ocp->nop", numbers, weight.flatten(2)).view(len(input), len(weight), *weight.shape[2:])
    return _along_dimensions(taps, _reached(input, weight, geometry))


def weight_gradient_of_uniform(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W where the input does not vary within its planes."""
    numbers = input.flatten(2)[..., 0]
    taps = _along_dimensions(s, [reached.t() for reached in _reached(input, weight, geometry)])
    return torch.einsum("nc,nop->ocp", numbers, taps.flatten(2)).view(weight.shape)


def untiled(s: Tensor, weight: Tensor, size: torch.Size) -> Tensor:
    """W^T s where every pixel is read by one window at most (a patch embedding): one matrix product, then the patches put together."""
    kernel, windows = weight.shape[2:], s.shape[2:]
    spatial = len(kernel)
    order = [dim for k in range(spatial) for dim in (1 + k, 2 + spatial + k)]
    patches = product(rows(s), weight.flatten(1)).view(s.shape[0], *windows, *weight.shape[1:])
    image = patches.permute(0, 1 + spatial, *order).reshape(
        s.shape[0], weight.shape[1], *(n * k for n, k in zip(windows, kernel, strict=True))
    )
    if image.shape[2:] == size:
        return image
    # Pixels behind the last window are read by none.
    behind = [pad for n, have in zip(reversed(size), reversed(image.shape), strict=False) for pad in (0, n - have)]
    return torch.constant_pad_nd(image, behind)
