"""Layers without a matrix product: batch norm standing alone, and sums under the z+ rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import ops
from .autograd import call, first_order
from .layout import check_forward_value, check_like_multiplier, empty_like, has_kernels, per_channel, wide


def batch_norm_scale(variance: Tensor, gamma: Tensor | None, epsilon: float) -> Tensor:
    """The factor per channel of a batch norm in evaluation mode, k = gamma / sqrt(variance + epsilon).

    Args:
        variance: running variance, (C,), a constant; any floating dtype.
        gamma: (C,), or None for 1.
        epsilon: of the batch norm.

    Returns:
        k, (C,), float32 or better.

    Gradients: gamma.
    """
    inverse = (wide(variance) + epsilon).rsqrt_()
    return inverse if gamma is None else wide(gamma) * inverse


class _Affine(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        value: Tensor,
        input: Tensor,
        slope: Tensor,
        shift: Tensor | None,
        whole: float,
        positive: float,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, value, input, slope, shift)
        ctx.settings = (whole, positive, epsilon)
        return ops.affine(multiplier, value, input, slope, shift, *ctx.settings)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        grads = ops.affine_backward(grad, *ctx.saved_tensors, *ctx.settings)
        return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None, None, None)


def affine(
    multiplier: Tensor,
    value: Tensor,
    input: Tensor,
    slope: Tensor,
    shift: Tensor | None = None,
    *,
    whole: float,
    positive: float,
    epsilon: float,
) -> Tensor:
    r"""The multiplier at the input of a batch norm y = k_c x + c_c that stands alone.

    G_in = G v k' / (d + epsilon * sgn d), d = whole * z + positive * z+, z = k x + c, z+ = (k x)+ + c+, and k' = whole * k + positive *
    (k+ where x >= 0, k- elsewhere). Epsilon rule: whole 1, positive 0; z+: 0 and 1; gamma: 1 and gamma.

    Args:
        multiplier: G at the output, (T*B, C, ...), T targets of one batch, target-major.
        value: v, the output (that of a ReLU behind it, if there is one), (B, C, ...), dtype of multiplier.
        input: x, likewise.
        slope: k, (C,), float32 (float64 beside float64).
        shift: c, likewise; None: 0.
        whole, positive: shares of all contributions and of the positive ones.
        epsilon: stabilizer, >= 0.

    Returns:
        (T*B, C, ...), dtype of multiplier.

    Gradients: multiplier, value, input, slope, shift; first order only.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source: Bach et al. 2015 (epsilon and alpha-beta rules), Montavon et al. 2019 (gamma rule); docs/method.md section 1.
    """
    settings = (float(whole), float(positive), float(epsilon))
    if not has_kernels(multiplier):
        wider = call(_Affine, multiplier.float(), value.float(), input.float(), slope, shift, *settings)
        return wider.to(multiplier.dtype)
    return call(_Affine, multiplier, value, input, slope, shift, *settings)


class _AffineKnown(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, known: Tensor, input: Tensor, slope: Tensor, centre: Tensor, shift: Tensor | None) -> Tensor:
        ctx.save_for_backward(input, slope, centre)
        ctx.shift_dtype = None if shift is None else shift.dtype
        return known.detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, slope, centre = ctx.saved_tensors
        others = (0, *range(2, grad.dim()))
        grad_input = grad_slope = grad_shift = None
        if ctx.needs_input_grad[1]:
            grad_input = grad * per_channel(slope.to(grad.dtype), grad.dim())
        if ctx.needs_input_grad[2] or ctx.needs_input_grad[4]:
            total = grad.sum(others, dtype=slope.dtype)
            grad_slope = (grad * input).sum(others, dtype=slope.dtype) - total * centre
            grad_shift = total.to(ctx.shift_dtype) if ctx.needs_input_grad[4] else None
        return None, grad_input, grad_slope, None, grad_shift


def affine_known(known: Tensor, input: Tensor, slope: Tensor, centre: Tensor, shift: Tensor | None = None) -> Tensor:
    """k (x - m) + c, a batch norm with its statistics held constant, whose value the forward pass has already computed.

    Args:
        known: the value, (B, C, ...).
        input: x, (B, C, ...).
        slope: k, (C,), float32 or float64.
        centre: m, likewise; a constant.
        shift: c, (C,), for its gradient alone; None: it gets none.

    Gradients: input, slope, shift; first order only.
    """
    return call(_AffineKnown, known, input, slope, centre, shift)


class _SumZPlus(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(multiplier, a, b)
        ctx.epsilon = epsilon
        return ops.sum_zplus(multiplier, a, b, epsilon)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad_a: Tensor, grad_b: Tensor) -> Any:
        grads = ops.sum_zplus_backward(grad_a, grad_b, *ctx.saved_tensors, ctx.epsilon)
        return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None)


def sum_zplus(multiplier: Tensor, a: Tensor, b: Tensor, *, epsilon: float) -> tuple[Tensor, Tensor]:
    r"""The multipliers at both summands of t = a + b under the z+ rule.

    s = G t / (a+ + b+ + epsilon); a summand gets s where it is >= 0, else 0.

    Args:
        multiplier: G at the sum, (T*B, ...), T targets of one batch, target-major.
        a, b: the summands, (B, ...), of one shape, dtype of multiplier.
        epsilon: stabilizer, >= 0.

    Returns:
        Two tensors of the multiplier's shape.

    Gradients: multiplier, a, b; first order only.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source: Bassi et al. 2024 (Dual ISNet); docs/method.md section 1.
    """
    if not has_kernels(multiplier):
        wider = sum_zplus(multiplier.float(), a.float(), b.float(), epsilon=epsilon)
        return wider[0].to(multiplier.dtype), wider[1].to(multiplier.dtype)
    return call(_SumZPlus, multiplier, a, b, float(epsilon))


# -- shape functions ----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("lrpkernels::affine")
def _affine(multiplier: Tensor, value: Tensor, input: Tensor, *rest: Any) -> Tensor:
    for name, tensor in (("value", value), ("input", input)):
        check_forward_value("affine", name, tensor, multiplier)
    return empty_like(multiplier, input)


@torch.library.register_fake("lrpkernels::affine_backward")
def _affine_backward(
    grad: Tensor, multiplier: Tensor, value: Tensor, input: Tensor, slope: Tensor, shift: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    check_like_multiplier("affine_backward", "grad", grad, multiplier)
    channels = (slope.new_empty(slope.shape), slope.new_empty(0 if shift is None else slope.shape))
    return *(empty_like(tensor, input) for tensor in (multiplier, value, input)), *channels


@torch.library.register_fake("lrpkernels::sum_zplus")
def _sum_zplus(multiplier: Tensor, a: Tensor, b: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    for name, tensor in (("a", a), ("b", b)):
        check_forward_value("sum_zplus", name, tensor, multiplier)
    return empty_like(multiplier, a), empty_like(multiplier, a)


@torch.library.register_fake("lrpkernels::sum_zplus_backward")
def _sum_zplus_backward(
    grad_a: Tensor, grad_b: Tensor, multiplier: Tensor, a: Tensor, b: Tensor, epsilon: float
) -> tuple[Tensor, ...]:
    for name, tensor in (("grad_a", grad_a), ("grad_b", grad_b)):
        check_like_multiplier("sum_zplus_backward", name, tensor, multiplier)
    return tuple(empty_like(tensor, a) for tensor in (multiplier, a, b))
