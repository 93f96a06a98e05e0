"""Memory layouts of tensors, and the checks that the ops' shape functions share.

Results of an op have the layout of the forward value it reads: contiguous unless that is channels-last (csrc/common/pointwise_ops.h).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._extension import ops

WIDE = (torch.float32, torch.float64)


def memory_format(leader: Tensor) -> torch.memory_format:
    """The layout in which an op runs: that of ``leader``, contiguous where it has both or neither."""
    if leader.is_contiguous():
        return torch.contiguous_format
    for dimensions, format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if leader.dim() == dimensions and leader.is_contiguous(memory_format=format):
            return format
    return torch.contiguous_format


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a tensor is channels-last and not contiguous as well."""
    return tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def is_capturing(device: torch.device) -> bool:
    """Whether work for ``device`` is captured in a CUDA graph instead of run. Checks that would read a result are skipped then."""
    return ops.capturing or (device.type == "cuda" and torch.cuda.is_current_stream_capturing())


def has_kernels(tensor: Tensor) -> bool:
    """Whether the ops take this tensor's dtype: every supported one except float16 on the CPU."""
    return ops.are_fused_for(tensor) or tensor.device.type != "cpu" or tensor.dtype != torch.float16


def wide(tensor: Tensor) -> Tensor:
    """The tensor in float32 or better, as statistics are computed with."""
    return tensor if tensor.dtype in WIDE else tensor.float()


def per_channel(vector: Tensor, dimensions: int) -> Tensor:
    """A vector over channels, shaped to be broadcast against (N, C, ...) with that many dimensions."""
    return vector.view(-1, *(1,) * (dimensions - 2))


def times(values: Tensor, factor: Tensor) -> Tensor:
    """Values [T * B, ...] of T targets times a factor [B, ...] that they share."""
    if values.shape[0] == factor.shape[0]:
        return values * factor
    return (values.unflatten(0, (-1, factor.shape[0])) * factor).flatten(0, 1)


def select_by_sign(a: Tensor, where_positive: Tensor, where_negative: Tensor) -> Tensor:
    """Per element the first tensor where a >= 0, else the second; both may carry T targets of a's batch, target-major.

    NaN where a is NaN.
    """
    a, shape = a.detach(), (-1, a.shape[0])
    below = torch.where(a < 0, where_negative.unflatten(0, shape), a)
    return torch.where(a >= 0, where_positive.unflatten(0, shape), below).flatten(0, 1)


# -- used by shape functions --------------------------------------------------------------------------------------------------------


def empty_like(tensor: Tensor, leader: Tensor) -> Tensor:
    """An uninitialized tensor of that shape and dtype in the layout of ``leader``."""
    return torch.empty_like(tensor, memory_format=memory_format(leader))


def empty_planes(leading: Sequence[int], spatial: Sequence[int], like: Tensor, format: torch.memory_format) -> Tensor:
    """An uninitialized tensor of images and channels, (*leading, *spatial)."""
    return like.new_empty((*leading, *spatial)).contiguous(memory_format=format)


def check_forward_value(op: str, name: str, value: Tensor, multiplier: Tensor) -> None:
    """Raise RuntimeError unless ``value`` is a forward value beside this multiplier."""
    torch._check(
        value.dim() == multiplier.dim() and value.shape[1:] == multiplier.shape[1:],
        lambda: (
            f"{op}: {name} must have shape [B, C, ...] for a multiplier [T * B, C, ...] = "
            f"{list(multiplier.shape)}, got {list(value.shape)}"
        ),
    )


def check_like_multiplier(op: str, name: str, tensor: Tensor, multiplier: Tensor) -> None:
    """Raise RuntimeError unless ``tensor`` has the multiplier's shape."""
    torch._check(
        tensor.shape == multiplier.shape,
        lambda: f"{op}: {name} must have the multiplier's shape {list(multiplier.shape)}, got {list(tensor.shape)}",
    )
