"""Elementwise relevance operations: one fused pass forward, one backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._extension import ops
from ._autograd import call, first_order


class _EpsilonScale(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, addend, output, scale)
        ctx.epsilon = epsilon
        return ops.epsilon_scale(multiplier, addend, output, scale, epsilon)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, addend, output, scale = ctx.saved_tensors
        grad_multiplier, grad_output, grad_scale = ops.epsilon_scale_backward(
            grad, multiplier, addend, output, scale, ctx.epsilon, ctx.needs_input_grad[3]
        )
        return (
            grad_multiplier,
            grad_multiplier if ctx.needs_input_grad[1] else None,
            grad_output if ctx.needs_input_grad[2] else None,
            grad_scale if ctx.needs_input_grad[3] else None,
            None,
        )


def epsilon_scale(
    multiplier: Tensor,
    output: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    addend: Tensor | None = None,
    epsilon: float = 1e-2,
) -> Tensor:
    r"""The elementwise part of the epsilon rule through [batch norm ->] ReLU, in one pass.

    s = (G + G2) * m(u) * k_c,  m(u) = u / (u + epsilon) for u > 0, 0 for u <= 0; epsilon = 0 is ReLU's own derivative.

    Args:
        multiplier: G at the ReLU's output, (T*B, C, ...), T targets of one batch, target-major; any floating dtype.
        output: u, the ReLU's output, (B, C, ...), dtype of multiplier; None: no ReLU, m = 1.
        scale: k_c, the batch norm's factor per channel, (C,), float32 (float64 for float64 tensors); None: 1.
        addend: G2, a second contribution to the multiplier, its shape and dtype.
        epsilon: stabilizer, >= 0, in units of u.

    Returns:
        s, shape, dtype and memory format of multiplier.

    Gradients: multiplier, addend, output, scale; first order only.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit (the text names the argument and both values).

    Source: LRP-Flex of Bassi, Decherchi, Cavalli, "Faster ISNet", arXiv 2401.08409; docs/method.md section 1.
    """
    return call(_EpsilonScale, multiplier, addend, output, scale, float(epsilon))


class _Ratio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, multiplier: Tensor, value: Tensor, denominator: Tensor, epsilon: float) -> Tensor:
        ctx.save_for_backward(multiplier, value, denominator)
        ctx.epsilon = epsilon
        return ops.ratio(multiplier, value, denominator, epsilon)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, value, denominator = ctx.saved_tensors
        grads = ops.ratio_backward(grad, multiplier, value, denominator, ctx.epsilon)
        return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=False)), None)


def ratio(multiplier: Tensor, value: Tensor, denominator: Tensor, *, epsilon: float = 1e-2) -> Tensor:
    r"""Relevance over a stabilized denominator, s = G * v / (d + epsilon * sgn d), sgn 0 = +1.

    Args:
        multiplier: G at a layer's output, (T*B, C, ...), T targets of one batch, target-major; any floating dtype.
        value: v, the layer's output, (B, C, ...), so that G * v is its relevance.
        denominator: d, (B, C, ...): the layer's preactivation (epsilon rule) or its positive part (z+ rule).
        epsilon: stabilizer, >= 0, in units of d.

    Returns:
        s, shape and dtype of multiplier.

    Gradients: multiplier, value, denominator; first order only. Not differentiable where d = 0.
    Deterministic: yes.

    Raises:
        RuntimeError: a shape, dtype or device does not fit.

    Source: Bach et al. 2015, the epsilon rule; docs/method.md section 1.
    """
    return call(_Ratio, multiplier, value, denominator, float(epsilon))
