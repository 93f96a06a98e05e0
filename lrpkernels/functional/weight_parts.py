"""The parts of a weight that take part in a rule: W, W+, W- and their sums."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

from .autograd import call, first_order

_threshold_backward = torch.ops.aten.threshold_backward.default
_hardtanh_backward = torch.ops.aten.hardtanh_backward.default


class Part(NamedTuple):
    """Which contributions to z = W a + b take part in a rule: V = whole W + positive W+.

    Epsilon in the layer form: 1 and 0; z+: 0 and 1; gamma: 1 and gamma.

    Attributes:
        whole: share of all contributions.
        positive: share of the positive ones.
        sign: -1: W-, the negative ones, in place of the positive ones.
    """

    whole: float
    positive: float
    sign: int = 1

    @property
    def mirrored(self) -> Part:
        """The part for inputs below zero, where the positive terms of W a come from W-."""
        return self._replace(sign=-self.sign)

    def __call__(self, weight: Tensor) -> Tensor:
        """V of a weight or bias; gradients follow (that of W+ is 0 at 0)."""
        if self.positive == 0:
            return weight
        if self.whole == 0:
            return torch.relu(weight) if self.sign > 0 else negative_weight(weight)
        # whole * W + positive * W+ is a leaky ReLU of whole and whole + positive: one pass where clamping, scaling and adding are three.
        slope = 1 + self.positive / self.whole
        scaled = weight if self.whole == 1 else weight * self.whole
        return leaky_relu(scaled * slope, 1 / slope) if self.sign > 0 else leaky_relu(scaled, slope)


WHOLE, POSITIVE, NEGATIVE = Part(1.0, 0.0), Part(0.0, 1.0), Part(0.0, 1.0, -1)


class _PositiveWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor | None) -> Tensor:
        part = torch.relu(weight) if scale is None else (weight * scale).relu_()
        ctx.save_for_backward(part, weight, scale)
        return part

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        part, weight, scale = ctx.saved_tensors
        grad = _threshold_backward(grad, part, 0)  # relu's own: one pass, where clamp's compares and selects in two
        if scale is None:
            return grad, None
        grad_scale = _dots(grad, weight, scale) if ctx.needs_input_grad[1] else None
        return grad.mul_(scale) if ctx.needs_input_grad[0] else None, grad_scale


def _dots(grad: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(grad * weight) summed to the shape of ``scale``; by output channel without a tensor of products."""
    if scale.shape[0] == weight.shape[0] == scale.numel():
        rows = torch.bmm(grad.reshape(weight.shape[0], 1, -1), weight.to(grad.dtype).reshape(weight.shape[0], -1, 1))
        return rows.view(scale.shape)
    return (grad * weight).sum_to_size(scale.shape)


def positive_weight(weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """(k W)+, the positive part of a weight scaled per channel, as one step of the gradient graph. Its gradient at 0 is 0.

    Args:
        weight: W, any shape, float32 or float64 (or a 16-bit type without ``scale``).
        scale: k, broadcastable to the weight, its dtype; None: 1.

    Returns:
        The weight's shape.

    Gradients: weight, scale; first order only.

    Source: docs/method.md section 1 (z+ rule, merged batch norm).
    """
    return call(_PositiveWeight, weight, scale)


class _NegativeWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight.clamp(max=0)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        # One vectorized pass; clamp's own compares, and selects ten times as slowly. The smallest number stands for "or 0".
        return _hardtanh_backward(grad, weight, -torch.inf, torch.finfo(weight.dtype).tiny)


def negative_weight(weight: Tensor) -> Tensor:
    """W-, the negative part of a weight. Its gradient at 0 is 1, so that those of W+ and W- add up to that of W.

    Args:
        weight: W, any shape and floating dtype.

    Gradients: weight; first order only.

    Source: docs/method.md section 1 (alpha-beta and z^B rules).
    """
    return call(_NegativeWeight, weight)
