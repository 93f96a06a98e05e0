"""Relevance operations of pooling layers: winner-takes-all for max pooling, the transposed map for average pooling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from .._extension import ops
from .autograd import call, first_order
from .layout import empty_planes, has_kernels, memory_format

_max_pool = torch.ops.aten.max_pool2d_with_indices.default
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default


class _MaxPoolWinner(Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, indices: Tensor, input: Tensor, arguments: tuple[Any, ...]) -> Tensor:
        ctx.save_for_backward(indices)
        ctx.windows = arguments[:4]
        return ops.max_pool_winner(multiplier, indices, input.shape[2:], *ctx.windows)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        (indices,) = ctx.saved_tensors
        return ops.max_pool_winner_backward(grad, indices, *ctx.windows), None, None, None


def max_pool_winner(multiplier: Tensor, indices: Tensor, input: Tensor, arguments: tuple[Any, ...]) -> Tensor:
    """The multiplier at the input of a max pooling layer: everything goes to the winner of each window.

    Args:
        multiplier: G at the layer's output, (T*B, C, ...), T targets of one batch, target-major, 1 to 3 spatial dimensions.
        indices: the winners, (B, C, ...), int64, as ``return_indices=True`` gives them.
        input: the layer's input, (B, C, ...); only its sizes are read.
        arguments: (kernel_size, stride, padding, dilation, ceil_mode) of the layer, the first four as tuples.

    Returns:
        G at the input, (T*B, C, ...); overlapping windows add up.

    Gradients: multiplier; first order only.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit; on the CPU also an index outside its plane.

    Source: Bach et al. 2015 (winner-takes-all); docs/method.md section 1.
    """
    return call(_MaxPoolWinner, multiplier, indices, input, arguments)


_CHANNELS = 16  # from so many on channels fill vector registers
_FEW_NUMBERS = 1 << 14  # where two more calls cost more than they save


class _MaxPool(Function):
    """Gradients of any order, as PyTorch's own has them."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, windows: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
        output, indices = _by_channels(input, windows)
        ctx.save_for_backward(input, indices)
        ctx.windows = windows
        ctx.mark_non_differentiable(indices)
        ctx.set_materialize_grads(False)
        return output, indices

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: Any) -> Any:
        input, indices = ctx.saved_tensors
        return None if grad is None else _max_pool_backward(grad.contiguous(), input, *ctx.windows, indices), None


def _by_channels(input: Tensor, windows: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    output, indices = _max_pool(input.contiguous(memory_format=torch.channels_last), *windows)
    return output.contiguous(), indices.contiguous()


def max_pool(input: Tensor, arguments: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Max pooling in two dimensions and its winners: the numbers and layout of PyTorch's, whose kernel for NCHW on the CPU is slow.

    Args:
        input: (B, C, H, W), any floating dtype.
        arguments: (kernel_size, stride, padding, dilation, ceil_mode) of the layer, the first four as tuples.

    Returns:
        The maxima (B, C, h, w), and their flat positions in the planes of the input, int64.

    Gradients: input, of any order.
    """
    plain = input.device.type == "cpu" and input.is_contiguous() and input.dtype in (torch.float32, torch.bfloat16)
    if not plain or input.shape[1] < _CHANNELS or input.numel() < _FEW_NUMBERS:
        return _max_pool(input, *arguments)
    if not torch.is_grad_enabled() or not input.requires_grad:
        return _by_channels(input, arguments)
    found: tuple[Tensor, Tensor] = _MaxPool.apply(input, arguments)
    return found


def scatter_winner(multiplier: Tensor, indices: Tensor, spatial: Sequence[int]) -> Tensor:
    """Winner takes all for any pooling that can name its winners (1-d, adaptive, fractional max pooling).

    Args:
        multiplier: G at the layer's output, (T*B, C, ...), T targets of one batch, target-major.
        indices: flat position of each winner in its channel's input, (B, C, ...), int64.
        spatial: the input's spatial sizes.

    Returns:
        G at the input, (T*B, C, *spatial); overlapping windows add up.

    Gradients: multiplier.
    Deterministic: on the CPU; on CUDA sums of overlapping windows may be added in any order.

    Source: Bach et al. 2015 (winner-takes-all); docs/method.md section 1.
    """
    targets = multiplier.shape[0] // indices.shape[0]
    flat, index = multiplier.flatten(2), indices.flatten(2).repeat(targets, 1, 1)
    found = flat.new_zeros(*flat.shape[:2], torch.Size(spatial).numel()).scatter_add(2, index, flat)
    return found.unflatten(2, tuple(spatial))


class _AveragePoolTranspose(Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, input_size: Sequence[int], *windows: Any) -> Tensor:
        ctx.output_size, ctx.windows = multiplier.shape[2:], windows
        return ops.average_pool_transpose(multiplier, input_size, *windows)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ops.average_pool(grad, ctx.output_size, *ctx.windows), *(None,) * 6


def average_pool_transpose(
    multiplier: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int] = (),
    stride: Sequence[int] = (),
    padding: Sequence[int] = (),
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The transposed map of an average pooling layer: every output's multiplier, divided, at all inputs of its window.

    Args:
        multiplier: at the layer's output, (N, C, ...), 1 to 3 spatial dimensions.
        input_size: spatial sizes of the layer's input.
        kernel_size, stride, padding: of the layer, one entry per spatial dimension; all empty: adaptive pooling.
        count_include_pad, divisor_override: of the layer. Its ``ceil_mode`` shows in the multiplier's sizes.

    Returns:
        At the layer's input, (N, C, *input_size).

    Gradients: multiplier, by the layer's own map; first order only.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape or dtype does not fit.

    Source: docs/method.md section 1.
    """
    return call(
        _AveragePoolTranspose, multiplier, input_size, kernel_size, stride, padding, count_include_pad, divisor_override
    )


class _LinearAdjoint(Function):
    """The transposed map A^T of a parameter-free linear map A, by PyTorch's derivative of it; its own derivative is A."""

    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, map: Callable[[Tensor], Tensor], shape: torch.Size) -> Tensor:
        ctx.map = map
        with torch.enable_grad():
            zeros = multiplier.new_zeros((multiplier.shape[0], *shape[1:])).requires_grad_()
            return torch.autograd.grad(map(zeros), zeros, multiplier)[0]

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        return ctx.map(grad), None, None


def average_pull(
    multiplier: Tensor, map: Callable[[Tensor], Tensor], shape: torch.Size, windows: tuple[Any, ...] | None
) -> Tensor:
    """A^T G of an averaging layer A.

    Args:
        multiplier: G at the layer's output, (T*B, C, ...); a mean may have dropped its spatial dimensions.
        map: A, for any number of images.
        shape: of the layer's input, (B, C, ...).
        windows: what :func:`average_pool_transpose` takes after the sizes; None: A has no kernel, its derivative is used.

    Returns:
        (T*B, C, ...).

    Gradients: multiplier; first order only.
    """
    if windows is None or not has_kernels(multiplier):
        return call(_LinearAdjoint, multiplier, map, shape)
    if multiplier.dim() == 2:
        multiplier = multiplier.reshape(*multiplier.shape, *(1,) * len(shape[2:]))
    return average_pool_transpose(multiplier, shape[2:], *windows)


# -- shape functions ----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("lrpkernels::max_pool_winner")
def _max_pool_winner(multiplier: Tensor, indices: Tensor, input_size: Sequence[int], *windows: Any) -> Tensor:
    _check_indices("max_pool_winner", indices, multiplier)
    return empty_planes(multiplier.shape[:2], input_size, multiplier, memory_format(indices))


@torch.library.register_fake("lrpkernels::max_pool_winner_backward")
def _max_pool_winner_backward(grad: Tensor, indices: Tensor, *windows: Any) -> Tensor:
    _check_indices("max_pool_winner_backward", indices, grad)
    return empty_planes(grad.shape[:2], indices.shape[2:], grad, memory_format(indices))


def _check_indices(op: str, indices: Tensor, other: Tensor) -> None:
    torch._check(
        indices.dim() == other.dim() and indices.shape[1] == other.shape[1],
        lambda: (
            f"{op}: indices must have shape [B, C, ...] beside [T * B, C, ...] = {list(other.shape)}, "
            f"got {list(indices.shape)}"
        ),
    )


@torch.library.register_fake("lrpkernels::average_pool")
@torch.library.register_fake("lrpkernels::average_pool_transpose")
def _average_pool(values: Tensor, size: Sequence[int], *windows: Any) -> Tensor:
    divisor = windows[-1]
    torch._check(
        divisor is None or 0 < abs(divisor) < 2**30,
        lambda: f"average_pool: divisor_override must not be 0 and be below 2^30 in size, got {divisor}",
    )
    return empty_planes(values.shape[:2], size, values, memory_format(values))
