"""Shape functions of the ops, for torch.compile and other uses of tensors without data.

Layouts follow csrc/common/pointwise_ops.h: results lie like the forward value, contiguous unless that is
channels-last.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _memory_format(leader: Tensor) -> torch.memory_format:
    if leader.is_contiguous():
        return torch.contiguous_format
    for dimensions, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if leader.dim() == dimensions and leader.is_contiguous(memory_format=memory_format):
            return memory_format
    return torch.contiguous_format


def _check_forward_value(op: str, name: str, value: Tensor, multiplier: Tensor) -> None:
    torch._check(
        value.dim() == multiplier.dim() and value.shape[1:] == multiplier.shape[1:],
        lambda: (
            f"{op}: {name} must have shape [B, C, ...] for a multiplier [T * B, C, ...] = "
            f"{list(multiplier.shape)}, got {list(value.shape)}"
        ),
    )


def _check_like_multiplier(op: str, name: str, tensor: Tensor, multiplier: Tensor) -> None:
    torch._check(
        tensor.shape == multiplier.shape,
        lambda: f"{op}: {name} must have the multiplier's shape {list(multiplier.shape)}, got {list(tensor.shape)}",
    )


def _check_epsilon_scale(
    op: str, multiplier: Tensor, addend: Tensor | None, output: Tensor | None, scale: Tensor | None
) -> None:
    if addend is not None:
        _check_like_multiplier(op, "addend", addend, multiplier)
    if output is not None:
        _check_forward_value(op, "output", output, multiplier)
    if scale is not None:
        torch._check(
            scale.dim() == 1 and multiplier.dim() >= 2 and scale.shape[0] == multiplier.shape[1],
            lambda: f"{op}: scale must have shape [C] = [{multiplier.shape[1]}], got {list(scale.shape)}",
        )


@torch.library.register_fake("lrpkernels::epsilon_scale")
def _epsilon_scale(
    multiplier: Tensor, addend: Tensor | None, output: Tensor | None, scale: Tensor | None, epsilon: float, leak: float
) -> Tensor:
    _check_epsilon_scale("epsilon_scale", multiplier, addend, output, scale)
    leader = multiplier if output is None else output
    return torch.empty_like(multiplier, memory_format=_memory_format(leader))


@torch.library.register_fake("lrpkernels::epsilon_scale_backward")
def _epsilon_scale_backward(
    grad: Tensor,
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    leak: float,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "epsilon_scale_backward"
    _check_like_multiplier(op, "grad", grad, multiplier)
    _check_epsilon_scale(op, multiplier, addend, output, scale)
    memory_format = _memory_format(multiplier if output is None else output)
    grad_output = multiplier.new_empty(0) if output is None else torch.empty_like(output, memory_format=memory_format)
    grad_scale = torch.empty_like(scale) if need_scale and scale is not None else multiplier.new_empty(0)
    return torch.empty_like(multiplier, memory_format=memory_format), grad_output, grad_scale


def _check_ratio(op: str, multiplier: Tensor, value: Tensor, denominator: Tensor) -> None:
    _check_forward_value(op, "value", value, multiplier)
    torch._check(
        denominator.shape == value.shape,
        lambda: f"{op}: denominator must have the shape of value {list(value.shape)}, got {list(denominator.shape)}",
    )


@torch.library.register_fake("lrpkernels::ratio")
def _ratio(multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    _check_ratio("ratio", multiplier, value, denominator)
    return torch.empty_like(multiplier, memory_format=_memory_format(denominator))


@torch.library.register_fake("lrpkernels::ratio_backward")
def _ratio_backward(
    grad: Tensor, multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    op = "ratio_backward"
    _check_like_multiplier(op, "grad", grad, multiplier)
    _check_ratio(op, multiplier, value, denominator)
    memory_format = _memory_format(denominator)
    return (
        torch.empty_like(multiplier, memory_format=memory_format),
        torch.empty_like(value, memory_format=memory_format),
        torch.empty_like(denominator, memory_format=memory_format),
    )
