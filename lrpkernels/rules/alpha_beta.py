"""The alpha-beta rule and its special case z+ (alpha 1, beta 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import Weights, conv_part, conv_share, has_affine_kernels, sum_zplus
from .base import (
    Favour,
    Rule,
    is_nonnegative,
    layer_input,
    normalized,
    positive,
    select_by_sign,
    stabilized_ratio,
    total,
)

if TYPE_CHECKING:
    from ..functional import ConvGeometry
    from ..fuse import Block
    from ..layers.arithmetic import Add
    from ..layers.base import Multipliers
    from ..layers.pooling import AveragePool


def signed_share(block: Block, g: Tensor, eps: float, sign: int, bias: bool, scaled: bool) -> Tensor:
    """G at the input if only the contributions of one sign to z took part.

    sign +1: d = a+ W+ + a- W- + b+, sign -1: d = a+ W- + a- W+ + b-; s = R / (d + eps sgn d); R_j = a_j W~^T s, where W~ is the part
    of the weight that meets a_j's sign in d. One convolution each way where a is known to be non-negative, two otherwise.
    """
    b = block.bias() if bias else None
    if b is not None:
        b = b.clamp(min=0) if sign > 0 else b.clamp(max=0)
    a = layer_input(block)
    if not scaled and block.map.has_fused_rule(g):
        return block.map.fused_rule(g, block.output.tensor, a, b, eps, Favour(0.0, 1.0, sign))
    geometry = block.map.fused_geometry(block.map.weight)
    if geometry is not None:
        return _fused_share(block, g, a, block.weight(), b, eps, sign, scaled, geometry)
    w = block.weight_part(sign)
    if is_nonnegative(block):
        d = block.map.forward(a, w, b)
        return block.map.transpose(stabilized_ratio(g, block.output.tensor, d, eps, scaled), w)
    w_other = block.weight_part(-sign)
    d = block.map.forward(a.clamp(min=0), w, b) + block.map.forward(a.clamp(max=0), w_other, None)
    s = stabilized_ratio(g, block.output.tensor, d, eps, scaled)
    return select_by_sign(a, block.map.transpose(s, w), block.map.transpose(s, w_other))


def _fused_share(
    block: Block,
    g: Tensor,
    a: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    sign: int,
    scaled: bool,
    geometry: ConvGeometry,
) -> Tensor:
    """:func:`signed_share` by kernels that pick the parts of the weights themselves."""
    same, other = (Weights.POSITIVE, Weights.NEGATIVE) if sign > 0 else (Weights.NEGATIVE, Weights.POSITIVE)
    if is_nonnegative(block):
        d, weights = conv_part(a, weight, same, geometry), same
    else:
        d = conv_part(a.clamp(min=0), weight, same, geometry) + conv_part(a.clamp(max=0), weight, other, geometry)
        weights = Weights.SAME_SIGN if sign > 0 else Weights.OPPOSITE_SIGN
    if bias is not None:
        d = d + bias.view(-1, *(1,) * (d.dim() - 2))
    value, d = normalized(block.output.tensor, d, scaled)
    return conv_share(g, value, d, weight, a.detach(), weights=weights, geometry=geometry, epsilon=eps)


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """R = alpha * (relevance by positive contributions) - beta * (by negative ones), alpha - beta = 1.

    Positive contributions are a+ W+ and a- W-, with b+ in the denominator; negative ones a+ W- and a- W+, with b-.

    Args:
        alpha: >= 1.
        beta: >= 0, alpha - 1.
        eps: stabilizer of both denominators, >= 0.
        bias: whether the (detached) bias takes part in the denominators and so absorbs relevance.
        scaled: eps counts in units of the root mean square of each sample's denominator, not in absolute ones.
        first: rule of the first layer when this rule is used as a composite.

    Raises:
        ValueError: alpha - beta is not 1, or a negative number.

    Source: Bach et al. 2015 (alpha-beta rule); docs/method.md section 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    eps: float = 1e-6
    bias: bool = True
    scaled: bool = False
    first: Rule | None = None
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        positive("beta", self.beta)
        positive("eps", self.eps)
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1, got alpha={self.alpha!r}, beta={self.beta!r}")

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        g = total(multipliers)
        up = signed_share(block, g, self.eps, 1, self.bias, self.scaled)
        if self.beta == 0:
            return up if self.alpha == 1 else up * self.alpha
        return self.alpha * up - self.beta * signed_share(block, g, self.eps, -1, self.bias, self.scaled)


@dataclass(frozen=True)
class ZPlus(Rule):
    """The z+ rule: R_j = a_j sum_k w+_jk R_k / (sum_i a_i w+_ik + b+_k + eps); for signed inputs a+ with W+ and a- with W-.

    Sums give u+ / (u+ + v+), averages likewise. As multipliers: G_j = sum_k w+_jk z_k G_k / (z+_k + eps).

    Args:
        eps: stabilizer, >= 0.
        bias: whether the positive part of the (detached) bias takes part in the denominator and so absorbs relevance.
        scaled: eps counts in units of the root mean square of each sample's denominator, not in absolute ones.
        first: rule of the first layer when this rule is used as a composite, for example ``ZBox(0, 1)``.

    Raises:
        ValueError: eps negative or not finite.

    Source: Montavon et al. 2017 (deep Taylor decomposition); Bassi et al. 2024 (Dual ISNet); docs/method.md section 1.
    """

    eps: float = 1e-2
    bias: bool = True
    scaled: bool = False
    first: Rule | None = None
    reads = frozenset({"input", "output", "summands", "sum", "pool"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        return signed_share(block, total(multipliers), self.eps, 1, self.bias, self.scaled)

    def add(self, op: Add, multiplier: Tensor) -> Multipliers:
        if len(op.inputs) == 1:
            return super().add(op, multiplier)
        x, y = op.inputs[:2]
        alike = x.shape == y.shape and set(op.signs) == {1.0}
        if alike and not self.scaled and has_affine_kernels(multiplier):
            return sum_zplus(multiplier, x.tensor, y.tensor, epsilon=self.eps)
        parts = [sign * value.tensor for value, sign in zip(op.inputs, op.signs, strict=True)]
        denominator = torch.relu(parts[0]) + torch.relu(parts[1])
        g = stabilized_ratio(multiplier, op.output.tensor, denominator, self.eps, self.scaled)
        shares = []
        for index, value in enumerate(op.inputs):
            share = op.share(g, index)
            if not (value.nonnegative and op.signs[index] > 0):
                share = select_by_sign(op.signs[index] * value.tensor, share, None)
            shares.append(share)
        return tuple(shares)

    def average_pool(self, op: AveragePool, multiplier: Tensor) -> Tensor:
        value = op.inputs[0]
        if value.nonnegative:
            t = op.output.tensor
            return op.transpose(stabilized_ratio(multiplier, t, t, self.eps, self.scaled))
        a = value.tensor
        s = stabilized_ratio(multiplier, op.output.tensor, op.forward(a.clamp(min=0)), self.eps, self.scaled)
        return select_by_sign(a, op.transpose(s), None)
