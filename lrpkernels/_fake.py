"""Shape functions of the ops, for torch.compile and other uses of tensors without data.

Layouts follow csrc/common/pointwise_ops.h: results lie like the forward value, contiguous unless that is
channels-last.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def memory_format(leader: Tensor) -> torch.memory_format:
    """The layout in which an op runs: that of ``leader``, contiguous where it has both or neither."""
    if leader.is_contiguous():
        return torch.contiguous_format
    for dimensions, format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if leader.dim() == dimensions and leader.is_contiguous(memory_format=format):
            return format
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
    multiplier: Tensor, addend: Tensor | None, output: Tensor | None, scale: Tensor | None, epsilon: float
) -> Tensor:
    _check_epsilon_scale("epsilon_scale", multiplier, addend, output, scale)
    leader = multiplier if output is None else output
    return torch.empty_like(multiplier, memory_format=memory_format(leader))


@torch.library.register_fake("lrpkernels::epsilon_scale_backward")
def _epsilon_scale_backward(
    grad: Tensor,
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    epsilon: float,
    need_scale: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    op = "epsilon_scale_backward"
    _check_like_multiplier(op, "grad", grad, multiplier)
    _check_epsilon_scale(op, multiplier, addend, output, scale)
    format = memory_format(multiplier if output is None else output)
    grad_output = multiplier.new_empty(0) if output is None else torch.empty_like(output, memory_format=format)
    grad_scale = torch.empty_like(scale) if need_scale and scale is not None else multiplier.new_empty(0)
    return torch.empty_like(multiplier, memory_format=format), grad_output, grad_scale


def _check_ratio(op: str, multiplier: Tensor, value: Tensor, denominator: Tensor) -> None:
    _check_forward_value(op, "value", value, multiplier)
    torch._check(
        denominator.shape == value.shape,
        lambda: f"{op}: denominator must have the shape of value {list(value.shape)}, got {list(denominator.shape)}",
    )


@torch.library.register_fake("lrpkernels::ratio")
def _ratio(multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
    _check_ratio("ratio", multiplier, value, denominator)
    return torch.empty_like(multiplier, memory_format=memory_format(denominator))


@torch.library.register_fake("lrpkernels::ratio_backward")
def _ratio_backward(
    grad: Tensor, multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    op = "ratio_backward"
    _check_like_multiplier(op, "grad", grad, multiplier)
    _check_ratio(op, multiplier, value, denominator)
    format = memory_format(denominator)
    return (
        torch.empty_like(multiplier, memory_format=format),
        torch.empty_like(value, memory_format=format),
        torch.empty_like(denominator, memory_format=format),
    )


def _spatial(images: int, channels: int, spatial: Sequence[int], like: Tensor, format: torch.memory_format) -> Tensor:
    return like.new_empty((images, channels, *spatial)).contiguous(memory_format=format)


@torch.library.register_fake("lrpkernels::max_pool_winner")
def _max_pool_winner(
    multiplier: Tensor,
    indices: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    _check_indices("max_pool_winner", indices, multiplier)
    return _spatial(multiplier.shape[0], multiplier.shape[1], input_size, multiplier, memory_format(indices))


@torch.library.register_fake("lrpkernels::max_pool_winner_backward")
def _max_pool_winner_backward(
    grad: Tensor,
    indices: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    _check_indices("max_pool_winner_backward", indices, grad)
    return _spatial(grad.shape[0], grad.shape[1], indices.shape[2:], grad, memory_format(indices))


def _check_indices(op: str, indices: Tensor, other: Tensor) -> None:
    torch._check(
        indices.dim() == other.dim() and indices.shape[1] == other.shape[1],
        lambda: (
            f"{op}: indices must have shape [B, C, ...] beside [T * B, C, ...] = {list(other.shape)}, "
            f"got {list(indices.shape)}"
        ),
    )


@torch.library.register_fake("lrpkernels::average_pool")
def _average_pool(
    input: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    return _spatial(input.shape[0], input.shape[1], output_size, input, memory_format(input))


@torch.library.register_fake("lrpkernels::average_pool_transpose")
def _average_pool_transpose(
    multiplier: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    count_include_pad: bool,
    divisor_override: int | None,
) -> Tensor:
    return _spatial(multiplier.shape[0], multiplier.shape[1], input_size, multiplier, memory_format(multiplier))


@torch.library.register_fake("lrpkernels::conv_relevance")
def _conv_relevance(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    value: Tensor | None,
    denominator: Tensor | None,
    weight: Tensor,
    weights: int,
    input: Tensor | None,
    low: Tensor | None,
    high: Tensor | None,
    input_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    epsilon: float,
    tensor_cores: bool,
) -> Tensor:
    _check_epsilon_scale("conv_relevance", multiplier, addend, output, scale)
    format = memory_format(multiplier if output is None else output)
    return _spatial(multiplier.shape[0], weight.shape[1] * groups, input_size, multiplier, format)


@torch.library.register_fake("lrpkernels::conv_apply")
def _conv_apply(
    input: Tensor,
    weight: Tensor,
    weights: int,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    tensor_cores: bool,
) -> Tensor:
    kernel = weight.shape[2:]
    geometry = zip(input.shape[2:], kernel, stride, padding, dilation, strict=True)
    spatial = [max(0, (size + 2 * p - d * (k - 1) - 1) // s + 1) for size, k, s, p, d in geometry]
    return _spatial(input.shape[0], weight.shape[0], spatial, input, memory_format(input))


@torch.library.register_fake("lrpkernels::conv_weight_gradient")
def _conv_weight_gradient(
    multiplier: Tensor,
    addend: Tensor | None,
    output: Tensor | None,
    scale: Tensor | None,
    value: Tensor | None,
    denominator: Tensor | None,
    input: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    epsilon: float,
    tensor_cores: bool,
) -> Tensor:
    _check_epsilon_scale("conv_weight_gradient", multiplier, addend, output, scale)
    return multiplier.new_empty((multiplier.shape[1], input.shape[1] // groups, *kernel_size))


def _like(tensor: Tensor, leader: Tensor) -> Tensor:
    return torch.empty_like(tensor, memory_format=memory_format(leader))


@torch.library.register_fake("lrpkernels::affine")
def _affine(
    multiplier: Tensor,
    value: Tensor,
    input: Tensor,
    slope: Tensor,
    shift: Tensor | None,
    whole: float,
    positive: float,
    epsilon: float,
) -> Tensor:
    for name, tensor in (("value", value), ("input", input)):
        _check_forward_value("affine", name, tensor, multiplier)
    return _like(multiplier, input)


@torch.library.register_fake("lrpkernels::affine_backward")
def _affine_backward(
    grad: Tensor,
    multiplier: Tensor,
    value: Tensor,
    input: Tensor,
    slope: Tensor,
    shift: Tensor | None,
    whole: float,
    positive: float,
    epsilon: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    _check_like_multiplier("affine_backward", "grad", grad, multiplier)
    channels = (slope.new_empty(slope.shape), slope.new_empty(0 if shift is None else slope.shape))
    return _like(multiplier, input), _like(value, input), _like(input, input), *channels


@torch.library.register_fake("lrpkernels::sum_zplus")
def _sum_zplus(multiplier: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    for name, tensor in (("a", a), ("b", b)):
        _check_forward_value("sum_zplus", name, tensor, multiplier)
    return _like(multiplier, a), _like(multiplier, a)


@torch.library.register_fake("lrpkernels::sum_zplus_backward")
def _sum_zplus_backward(
    grad_a: Tensor, grad_b: Tensor, multiplier: Tensor, a: Tensor, b: Tensor, epsilon: float
) -> tuple[Tensor, Tensor, Tensor]:
    for name, tensor in (("grad_a", grad_a), ("grad_b", grad_b)):
        _check_like_multiplier("sum_zplus_backward", name, tensor, multiplier)
    return _like(multiplier, a), _like(a, a), _like(b, a)


@torch.library.register_fake("lrpkernels::heatmap_scores")
def _heatmap_scores(heatmap: Tensor, mask: Tensor, kept: int, decay: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dtype = torch.float64 if heatmap.dtype == torch.float64 else torch.float32
    maps, rows = heatmap.shape[:2], heatmap.shape[:3]
    order = heatmap.new_empty((*rows, kept), dtype=torch.int32)
    return *(heatmap.new_empty(shape, dtype=dtype) for shape in (maps, maps, rows)), order  # type: ignore[return-value]


@torch.library.register_fake("lrpkernels::heatmap_scores_backward")
def _heatmap_scores_backward(
    heatmap: Tensor,
    mask: Tensor,
    order: Tensor,
    grad_foreground: Tensor,
    grad_signed_foreground: Tensor,
    grad_background: Tensor,
    decay: float,
) -> Tensor:
    return heatmap.new_empty(heatmap.shape)
