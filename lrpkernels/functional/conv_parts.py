"""Convolutions by the positive and negative parts of their weights, for the z+, alpha-beta and z^B rules.

On devices with fused kernels one kernel makes s, picks the part of each weight as tiles are loaded, and combines the results:
neither W+ nor W- nor s is ever written to memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._extension import ops
from . import _conv_routes
from ._autograd import call, first_order
from ._conv_routes import NO_FACTORS, Epilogue, Factors
from ._vendor import ConvGeometry, Weights

# The part of W where a >= 0, and elsewhere.
_BY_SIGN = {
    Weights.SAME_SIGN: (Weights.POSITIVE, Weights.NEGATIVE),
    Weights.OPPOSITE_SIGN: (Weights.NEGATIVE, Weights.POSITIVE),
}


def _within(gradient: Tensor, weight: Tensor, part: Weights) -> Tensor:
    """A gradient for W+ (or W-) as one for W: zero where the other part has the weight."""
    if part == Weights.ALL:
        return gradient
    return gradient * (weight >= 0 if part == Weights.POSITIVE else weight <= 0)


class _Term(NamedTuple):
    """One of the linear maps that a combination of weights adds up: its share of the gradient at the input, the part of W, its sign."""

    grad: Tensor
    part: Weights
    sign: int = 1


def _combined_backward(ctx: Any, terms: list[_Term]) -> tuple[Tensor | None, ...]:
    """Gradients of multiplier, value, denominator and weight, the first four tensors that ``ctx`` saved."""
    multiplier, value, denominator, weight = ctx.saved_tensors[:4]
    factors = Factors(value=value, denominator=denominator)
    need, geometry, epsilon = ctx.needs_input_grad, ctx.geometry, ctx.epsilon
    grad_weight = pushed = None
    for grad, part, sign in terms:
        if need[3]:
            full = _conv_routes.weight_gradient(multiplier, factors, grad, weight, geometry, epsilon)
            grad_weight = _added(grad_weight, _within(full, weight, part), sign)
        if any(need[:3]):
            pushed = _added(pushed, _conv_routes.apply(grad, weight, geometry, part), sign)
    if pushed is None:
        return None, None, None, grad_weight
    return (*ops.ratio_backward(pushed, multiplier, value, denominator, epsilon), grad_weight)


def _added(so_far: Tensor | None, term: Tensor, sign: int) -> Tensor:
    if so_far is None:
        return term if sign > 0 else -term
    return so_far.add_(term, alpha=sign)


def _repeated(values: Tensor, like: Tensor) -> Tensor:
    """Forward values [B, ...] for each of the targets of ``like`` [T*B, ...]."""
    return (
        values
        if values.shape[0] == like.shape[0]
        else values.repeat(like.shape[0] // values.shape[0], *(1,) * (values.dim() - 1))
    )


class _ConvPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, weights: Weights, geometry: ConvGeometry) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.weights, ctx.geometry = weights, geometry
        return _conv_routes.apply(input, weight, geometry, weights)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        grad_input = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_input = _conv_routes.relevance(grad, NO_FACTORS, weight, input, ctx.geometry, weights=ctx.weights)
        if ctx.needs_input_grad[1]:
            full = _conv_routes.weight_gradient(grad, NO_FACTORS, input, weight, ctx.geometry)
            grad_weight = _within(full, weight, ctx.weights)
        return grad_input, grad_weight, None, None


def conv_part(input: Tensor, weight: Tensor, weights: Weights, geometry: ConvGeometry) -> Tensor:
    """W+ a or W- a (or W a), without bias, where :func:`has_fused_conv`.

    Args:
        input: a, (N, C_in, ...).
        weight: W, dtype of input.
        weights: ``Weights.POSITIVE``, ``NEGATIVE`` or ``ALL``.
        geometry: of the convolution.

    Gradients: input, weight (zero where the part leaves it out; both parts have it where a weight is 0); first order only.
    """
    return call(_ConvPart, input, weight, weights, geometry)


class _ConvShare(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        value: Tensor,
        denominator: Tensor,
        weight: Tensor,
        input: Tensor,
        weights: Weights,
        geometry: ConvGeometry,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, value, denominator, weight, input)
        ctx.weights, ctx.geometry, ctx.epsilon = weights, geometry, epsilon
        factors = Factors(value=value, denominator=denominator)
        epilogue = Epilogue(input) if weights in _BY_SIGN else _conv_routes.NO_EPILOGUE
        return _conv_routes.relevance(multiplier, factors, weight, input, geometry, epsilon, weights, epilogue)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input = ctx.saved_tensors[4]
        terms = [_Term(grad, ctx.weights)]
        if ctx.weights in _BY_SIGN:
            places, (up, down) = _repeated(input >= 0, grad), _BY_SIGN[ctx.weights]
            terms = [_Term(grad * places, up), _Term(grad * ~places, down)]
        return *_combined_backward(ctx, terms), None, None, None, None


def conv_share(
    multiplier: Tensor,
    value: Tensor,
    denominator: Tensor,
    weight: Tensor,
    input: Tensor,
    *,
    weights: Weights,
    geometry: ConvGeometry,
    epsilon: float,
) -> Tensor:
    """The multiplier at a convolution's input under the z+ or alpha-beta rule, where :func:`has_fused_conv`.

    G_in = V^T s, s = G value / (denominator + epsilon sgn denominator), V the part of W that ``weights`` names.

    Args:
        multiplier: G at the block's output, (T*B, C_out, ...).
        value: the block's output, (B, C_out, ...).
        denominator: of the rule, likewise.
        weight: W, dtype of multiplier.
        input: the layer's input a, (B, C_in, ...): its sizes, and for ``SAME_SIGN`` and ``OPPOSITE_SIGN`` its signs.
        weights: ``POSITIVE``, ``NEGATIVE``, ``SAME_SIGN`` (W+ where a >= 0, W- elsewhere) or ``OPPOSITE_SIGN``.
        geometry: of the convolution.
        epsilon: stabilizer.

    Returns:
        (T*B, C_in, ...).

    Gradients: multiplier, value, denominator, weight; first order only.

    Source: Bach et al. 2015 (alpha-beta rule); docs/method.md section 1.
    """
    return call(_ConvShare, multiplier, value, denominator, weight, input, weights, geometry, float(epsilon))


class _ConvBox(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        value: Tensor,
        denominator: Tensor,
        weight: Tensor,
        input: Tensor,
        low: Tensor,
        high: Tensor,
        geometry: ConvGeometry,
        epsilon: float,
    ) -> Tensor:
        ctx.save_for_backward(multiplier, value, denominator, weight, input, low, high)
        ctx.geometry, ctx.epsilon = geometry, epsilon
        factors = Factors(value=value, denominator=denominator)
        epilogue = Epilogue(input, low, high)
        return _conv_routes.relevance(multiplier, factors, weight, input, geometry, epsilon, Weights.BOX, epilogue)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        multiplier, value, denominator, weight, input, low, high = ctx.saved_tensors
        shape = (1, -1, *(1,) * (grad.dim() - 2))
        terms = [_Term(grad * _repeated(input, grad), Weights.ALL)]
        for bound, part in ((low, Weights.POSITIVE), (high, Weights.NEGATIVE)):
            terms.append(_Term(grad * bound.to(grad.dtype).view(shape), part, -1))
        grads = _combined_backward(ctx, terms)
        grad_input = None
        if ctx.needs_input_grad[4]:
            factors = Factors(value=value, denominator=denominator)
            pulled = _conv_routes.relevance(multiplier, factors, weight, input, ctx.geometry, ctx.epsilon)
            grad_input = (grad * pulled).unflatten(0, (-1, input.shape[0])).sum(0)
        return *grads, grad_input, None, None, None, None


def conv_box(
    multiplier: Tensor,
    value: Tensor,
    denominator: Tensor,
    weight: Tensor,
    input: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    geometry: ConvGeometry,
    epsilon: float,
) -> Tensor:
    """Relevance of the pixels under the z^B rule, where :func:`has_fused_conv`.

    R = x * W^T s - low * W+^T s - high * W-^T s, s = G value / (denominator + epsilon sgn denominator).

    Args:
        multiplier: G at the block's output, (T*B, C_out, ...).
        value: the block's output, (B, C_out, ...).
        denominator: of the rule, likewise.
        weight: W, dtype of multiplier.
        input: x, (B, C_in, ...).
        low, high: bounds of the pixels, (C_in,), float32 (float64 beside float64).
        geometry: of the convolution.
        epsilon: stabilizer.

    Returns:
        (T*B, C_in, ...).

    Gradients: multiplier, value, denominator, weight, input; first order only.

    Source: Montavon et al. 2017 (z^B rule); docs/method.md section 1.
    """
    return call(_ConvBox, multiplier, value, denominator, weight, input, low, high, geometry, float(epsilon))
