"""Convolutions: V a and V^T s for the parts V of a weight, and the relevance of pixels under z^B."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import conv_routes
from .autograd import call, first_order
from .conv_routes import NO_EPILOGUE, Epilogue
from .geometry import ConvGeometry, Weights, check_part
from .late import Late
from .layout import empty_planes, memory_format, per_channel, select_by_sign, times
from .pointwise import Scaled, check_epsilon_scale
from .stabilizer import Stabilizer
from .weight_parts import NEGATIVE, POSITIVE, WHOLE, negative_weight, positive_weight

# The part of W where a >= 0, and elsewhere.
_BY_SIGN = {
    Weights.SAME_SIGN: (Weights.POSITIVE, Weights.NEGATIVE),
    Weights.OPPOSITE_SIGN: (Weights.NEGATIVE, Weights.POSITIVE),
}


_PICKED = {POSITIVE: Weights.POSITIVE, NEGATIVE: Weights.NEGATIVE}


_NO_GRADIENTS: tuple[Tensor | None, ...] = (None,) * 6


class ConvWeight(NamedTuple):
    """The part of a weight that meets a convolution's input: ``weight`` itself, or W+ or W- of it, picked as kernels load it."""

    weight: Tensor
    weights: Weights = Weights.ALL


def conv_weight(
    weight: Tensor, scale: Tensor | None, part: Any, geometry: ConvGeometry, dtype: torch.dtype
) -> ConvWeight:
    """V of the weight k W.

    Args:
        weight: W, as ``torch.ops.aten.convolution`` takes it.
        scale: k of a batch norm merged into it, broadcastable to the weight; None: 1.
        part: :class:`Part`, or any function of the weight.
        geometry: of the convolution.
        dtype: of the layer's output.

    Gradients: weight, scale; first order only.
    """
    if part is WHOLE and scale is None:
        return ConvWeight(weight if weight.dtype == dtype else weight.to(dtype))
    picked = _PICKED.get(part)
    fused = picked is not None and conv_routes.picks_parts(weight, geometry)
    if part == POSITIVE and not fused:
        return ConvWeight(positive_weight(weight, scale).to(dtype))
    whole = (weight if scale is None else weight * scale).to(dtype)
    return ConvWeight(whole, picked) if fused and picked is not None else ConvWeight(part(whole))


class _ConvApply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        weights: Weights,
        geometry: ConvGeometry,
        known: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.weights, ctx.geometry = weights, geometry
        return conv_routes.apply(input, weight, bias, geometry, weights) if known is None else known.detach()

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        input, weight = ctx.saved_tensors
        need, plain = ctx.needs_input_grad, Scaled(grad)
        grad_input = conv_routes.relevance(plain, weight, input, ctx.geometry, ctx.weights) if need[0] else None
        grad_weight = None
        if need[1]:
            grad_weight = _within(conv_routes.weight_gradient(plain, input, weight, ctx.geometry), weight, ctx.weights)
        grad_bias = grad.sum((0, *range(2, grad.dim()))) if need[2] else None
        return grad_input, grad_weight, grad_bias, None, None, None


def conv_apply(
    input: Tensor, weight: ConvWeight, bias: Tensor | None, geometry: ConvGeometry, known: Tensor | None = None
) -> Tensor:
    """V a + b.

    Args:
        input: a, (B, C_in, ...).
        weight: V, dtype of input.
        bias: b, (C_out,), or None.
        geometry: of the convolution.
        known: the result, (B, C_out, ...), if the forward pass has already computed it: the op then costs nothing, and its
            backward as much as always.

    Gradients: input, weight (zero where a picked part leaves it out; both parts get it where a weight is 0), bias; first order only.
    """
    return call(_ConvApply, input, weight.weight, bias, weight.weights, geometry, known)


class _ConvPull(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        value: Tensor | None,
        denominator: Tensor | None,
        weight: Tensor,
        input: Tensor,
        eps: Stabilizer,
        weights: Weights,
        geometry: ConvGeometry,
        bounds: tuple[Tensor, Tensor] | None = None,
        read: Tensor | None = None,
        made: Tensor | None = None,
    ) -> Tensor:
        # s is not saved: backward recomputes it, one elementwise pass that saves a tensor per layer.
        scaled = Scaled(multiplier, addend, output, scale, value, denominator, eps)
        reads_input = weights is not Weights.ALL and weights in (Weights.SAME_SIGN, Weights.OPPOSITE_SIGN, Weights.BOX)
        ctx.save_for_backward(*scaled[:6], weight, input if reads_input else None)
        ctx.eps, ctx.weights, ctx.geometry, ctx.bounds = eps, weights, geometry, bounds
        epilogue = Epilogue(input, *(bounds or ())) if reads_input else NO_EPILOGUE
        return conv_routes.relevance(scaled, weight, input, geometry, weights, epilogue)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        saved = ctx.saved_tensors  # may be unpacked once only
        need, geometry = ctx.needs_input_grad, ctx.geometry
        multiplier, addend, output, scale, value, denominator, weight, input = saved
        scaled = Scaled(multiplier, addend, output, scale, value, denominator, ctx.eps)
        late = (grad, scaled.made()) if any(need[12:]) else (None, None)
        if ctx.weights is Weights.ALL:
            grad_weight = conv_routes.weight_gradient(scaled, grad, weight, geometry) if need[6] else None
            grads = _NO_GRADIENTS
            if True in need[:6]:
                grads = scaled.gradients(conv_routes.apply(grad, weight, None, geometry), need)
            return *grads, grad_weight, *(None,) * 5, *late
        grad_weight = pushed = grad_input = None
        for part, weights, sign in _terms(grad, input, ctx.weights, ctx.bounds):
            if need[6]:
                full = conv_routes.weight_gradient(scaled, part, weight, geometry)
                grad_weight = _added(grad_weight, _within(full, weight, weights), sign)
            if any(need[:6]):
                pushed = _added(pushed, conv_routes.apply(part, weight, None, geometry, weights), sign)
        if need[7] and ctx.weights == Weights.BOX:
            pulled = conv_routes.relevance(scaled, weight, input, geometry)
            grad_input = (grad * pulled).unflatten(0, (-1, input.shape[0])).sum(0)
        grads = _NO_GRADIENTS if pushed is None else scaled.gradients(pushed, need)
        return *grads, grad_weight, grad_input, *(None,) * 4, *late


def _terms(
    grad: Tensor, input: Tensor | None, weights: Weights, bounds: tuple[Tensor, Tensor] | None
) -> list[tuple[Tensor, Weights, int]]:
    """The linear maps that a combination of weights adds up: share of the gradient at the input, part of W, sign."""
    if input is None:
        return [(grad, weights, 1)]
    if bounds is None:
        places = (input >= 0).repeat(grad.shape[0] // input.shape[0], *(1,) * (input.dim() - 1))
        up, down = _BY_SIGN[weights]
        return [(grad * places, up, 1), (grad * ~places, down, 1)]
    low, high = (grad * per_channel(bound.to(grad.dtype), grad.dim()) for bound in bounds)
    return [(times(grad, input), Weights.ALL, 1), (low, Weights.POSITIVE, -1), (high, Weights.NEGATIVE, -1)]


def _within(gradient: Tensor, weight: Tensor, part: Weights) -> Tensor:
    """A gradient for W+ (or W-) as one for W: zero where the other part has the weight."""
    if part == Weights.ALL:
        return gradient
    return gradient * (weight >= 0 if part == Weights.POSITIVE else weight <= 0)


def _added(so_far: Tensor | None, term: Tensor, sign: int) -> Tensor:
    if so_far is None:
        return term if sign > 0 else -term
    return so_far.add_(term, alpha=sign)


def conv_pull(
    scaled: Scaled, weight: ConvWeight, input: Tensor, geometry: ConvGeometry, late: Late | None = None
) -> Tensor:
    r"""V^T s, the multiplier at the input of convolution [-> batch norm] [-> ReLU] under a rule.

    Epsilon: s = G m(u) k_c, so that R_j = a_j * sum_k w_jk R_k / (z_k + eps) for the z_k > 0 that pass the ReLU; other rules: s = G v / d.

    Args:
        scaled: how s is made of G at the block's output, (T*B, C_out, ...).
        weight: V, dtype of the multiplier.
        input: the convolution's input, (B, C_in, ...); only its sizes and memory format are read.
        geometry: stride, padding, dilation, transposed, output padding, groups.
        late: takes the gradient of the whole weight (:func:`late_weight`), which gets none here.

    Returns:
        (T*B, C_in, ...).

    Gradients: the tensors of ``scaled``, weight; first order only. Backward costs one forward convolution, one weight gradient and one
        elementwise pass.
    Deterministic: as the vendor's convolution.

    Source: Bach et al. 2015 (epsilon rule); arXiv 2401.08409 (LRP-Flex); docs/method.md section 1.
    """
    if late is None:
        return call(_ConvPull, *scaled[:6], weight.weight, input, scaled.eps, weight.weights, geometry)
    return call(
        _ConvPull, *scaled[:6], weight.weight.detach(), input, scaled.eps, weight.weights, geometry, None, *late
    )


def conv_weight_gradient(s: Tensor, input: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    """The gradient of <s, W input> for W, (C_out, C_in / groups, ...), of which only sizes and layout are read; not differentiable."""
    return conv_routes.weight_gradient(Scaled(s), input, weight, geometry)


def conv_pull_by_sign(
    scaled: Scaled, same: ConvWeight, other: ConvWeight, input: Tensor, geometry: ConvGeometry
) -> Tensor:
    """V^T s where a >= 0, V'^T s elsewhere, for layers whose inputs may be negative.

    Args:
        scaled: as in :func:`conv_pull`.
        same, other: V and V', two parts of one weight.
        input: the layer's input a, (B, C_in, ...): its sizes and signs.
        geometry: of the convolution.

    Gradients: the tensors of ``scaled``, both weights; first order only.
    """
    if Weights.ALL not in (same.weights, other.weights):  # kernels pick by sign, too
        by_sign = Weights.SAME_SIGN if same.weights == Weights.POSITIVE else Weights.OPPOSITE_SIGN
        return call(_ConvPull, *scaled[:6], same.weight, input.detach(), scaled.eps, by_sign, geometry)
    s = Scaled(scaled.tensor())
    return select_by_sign(input, *(conv_pull(s, weight, input, geometry) for weight in (same, other)))


def conv_pull_sum(s: Sequence[Tensor], weights: Sequence[ConvWeight], input: Tensor, geometry: ConvGeometry) -> Tensor:
    """The sum of V^T s over several weights, each with an s of its own, (T*B, C_out, ...)."""
    plain = not geometry.transposed and geometry.groups == 1
    # Stacked along the output channels the sum is one convolution, worth it where weights are small beside their results.
    if plain and weights[0].weight.numel() <= input.numel():
        stacked = ConvWeight(torch.cat([conv_routes.part_of(*w) for w in weights], 0))
        return conv_pull(Scaled(torch.cat(list(s), 1)), stacked, input, geometry)
    terms = [conv_pull(Scaled(part), weight, input, geometry) for part, weight in zip(s, weights, strict=True)]
    return sum(terms[1:], terms[0])


def conv_box(
    scaled: Scaled, weight: Tensor, input: Tensor, low: Tensor | None, high: Tensor | None, geometry: ConvGeometry
) -> Tensor:
    """Relevance of the pixels under the z^B rule, R = x * W^T s - low * W+^T s - high * W-^T s.

    Args:
        scaled: how s is made of G at the block's output, (T*B, C_out, ...).
        weight: W, dtype of the multiplier.
        input: x, (B, C_in, ...).
        low, high: bounds of the pixels, (C_in,); None: 0.
        geometry: of the convolution.

    Returns:
        (T*B, C_in, ...).

    Gradients: the tensors of ``scaled``, weight, input; first order only.

    Source: Montavon et al. 2017 (z^B rule); docs/method.md section 1.
    """
    if conv_routes.picks_parts(weight, geometry):
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        zero = torch.zeros(input.shape[1], dtype=dtype, device=input.device)
        bounds = tuple(zero if bound is None else bound.to(dtype) for bound in (low, high))
        return call(_ConvPull, *scaled[:6], weight, input, scaled.eps, Weights.BOX, geometry, bounds)
    parts = [(input, weight)]
    for bound, part in ((low, positive_weight), (high, negative_weight)):
        if bound is not None:
            parts.append((-per_channel(bound.to(input.dtype), input.dim()).unsqueeze(0), part(weight)))
    pulled = _pull_each(scaled, [w for _, w in parts], input, geometry)
    terms = [times(v, factor) for (factor, _), v in zip(parts, pulled, strict=True)]
    return sum(terms[1:], terms[0])


def _pull_each(scaled: Scaled, weights: list[Tensor], input: Tensor, geometry: ConvGeometry) -> Sequence[Tensor]:
    """V^T s for several weights that share s."""
    # A first layer has few input channels: stacked, the weights share one pass over s and fill the vector registers better.
    if geometry.transposed or geometry.groups != 1 or input.shape[1] > 4:
        s = Scaled(scaled.tensor())
        return [conv_pull(s, ConvWeight(weight), input, geometry) for weight in weights]
    return conv_pull(scaled, ConvWeight(torch.cat(weights, 1)), input, geometry).chunk(len(weights), 1)


# -- shape functions ----------------------------------------------------------------------------------------------------------------


@torch.library.register_fake("lrpkernels::conv_relevance")
def _conv_relevance(multiplier: Tensor, *rest: Any) -> Tensor:
    addend, output, scale, _, _, weight, weights, _, _, _, input_size, _, _, _, groups, *_ = rest
    check_part("conv_relevance", weights, Weights.BOX)
    check_epsilon_scale("conv_relevance", multiplier, addend, output, scale)
    format = memory_format(multiplier if output is None else output)
    return empty_planes((multiplier.shape[0], weight.shape[1] * groups), input_size, multiplier, format)


@torch.library.register_fake("lrpkernels::conv_apply")
def _conv_apply(input: Tensor, weight: Tensor, weights: int, *rest: Any) -> Tensor:
    stride, padding, dilation, groups, _ = rest
    check_part("conv_apply", weights)
    geometry = ConvGeometry(tuple(stride), tuple(padding), tuple(dilation), False, (), groups)
    spatial = geometry.output_size(input.shape, weight.shape)
    return empty_planes((input.shape[0], weight.shape[0]), spatial, input, memory_format(input))


@torch.library.register_fake("lrpkernels::conv_weight_gradient")
def _conv_weight_gradient(multiplier: Tensor, *rest: Any) -> Tensor:
    addend, output, scale, _, _, input, kernel_size, _, _, _, groups, *_ = rest
    check_epsilon_scale("conv_weight_gradient", multiplier, addend, output, scale)
    return multiplier.new_empty((multiplier.shape[1], input.shape[1] // groups, *kernel_size))
