"""Relevance operations of pooling layers: winner-takes-all for max pooling, the transposed map for average pooling."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd import Function

from .._extension import ops
from ._autograd import call, first_order


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
