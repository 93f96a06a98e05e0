"""Layer, group, instance and RMS norm: relevance through a norm whose deviation is a constant."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import ops
from .autograd import call, first_order
from .layout import check_forward_value, check_like_multiplier, has_kernels


class _SampleNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        input: Tensor,
        weight: Tensor | None,
        row: int,
        inner: int,
        centred: bool,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, input, weight)
        ctx.settings = (row, inner, centred, epsilon)
        return ops.sample_norm(multiplier, input, weight, *ctx.settings)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = ops.sample_norm_backward(grad, *ctx.saved_tensors, *ctx.settings)
        return *(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), *(None,) * 4


def sample_norm(
    multiplier: Tensor,
    input: Tensor,
    weight: Tensor | None,
    *,
    row: int,
    inner: int = 1,
    centred: bool,
    epsilon: float,
) -> Tensor:
    r"""The multiplier at the input of a norm y = w (x - mean) r + b, r = 1 / sqrt(variance + epsilon), with r as a constant.

    G_in = r (w G - mean(w G)) over each row of elements that share their statistics; without the mean where the norm is not centred (RMS
    norm: the variance is then the mean of x^2). Gradients see that r depends on x.

    Args:
        multiplier: G at the output, (T*B, ...), T targets of one batch, target-major; any floating dtype.
        input: x, (B, ...), dtype of multiplier.
        weight: w, (C,), float32 (float64 beside float64); the channel of element i is (i / inner) % C. None: 1.
        row: elements of a row: neighbours in memory order, rows one after the other.
        inner: elements of a plane with one weight: 1 for layer norm, H*W for group norm of (B, C, H, W).
        centred: whether the mean is subtracted.
        epsilon: of the norm, >= 0.

    Returns:
        (T*B, ...), contiguous, dtype of multiplier.

    Gradients: multiplier, input, weight; first order only.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source: Achtibat et al. 2024 (AttnLRP), arXiv 2402.05602, Proposition 3.4.
    """
    settings = (int(row), int(inner), bool(centred), float(epsilon))
    if not has_kernels(multiplier):
        return call(_SampleNorm, multiplier.float(), input.float(), weight, *settings).to(multiplier.dtype)
    return call(_SampleNorm, multiplier, input, weight, *settings)


# -- shape functions ----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("lrpkernels::sample_norm")
def _sample_norm(multiplier: Tensor, input: Tensor, *rest: Any) -> Tensor:
    check_forward_value("sample_norm", "input", input, multiplier)
    return torch.empty_like(multiplier, memory_format=torch.contiguous_format)


@torch.library.register_fake("lrpkernels::sample_norm_backward")
def _sample_norm_backward(
    grad: Tensor, multiplier: Tensor, input: Tensor, weight: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    check_like_multiplier("sample_norm_backward", "grad", grad, multiplier)
    dense = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (multiplier, input)]
    return dense[0], dense[1], multiplier.new_empty(0) if weight is None else torch.empty_like(weight)
