"""The alpha-beta rule and its special case z+ (alpha 1, beta 0)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import NEGATIVE, POSITIVE, Scaled, ratio, select_by_sign, sum_zplus
from .base import Rule, positive
from .views import Average, Layer, Sum


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """R = alpha * (relevance by positive contributions) - beta * (by negative ones), alpha - beta = 1.

    Positive contributions are a+ W+ and a- W-, with b+ in the denominator; negative ones a+ W- and a- W+, with b-.

    Args:
        alpha: >= 1.
        beta: >= 0, alpha - 1.
        eps: stabilizer of both denominators, >= 0.
        bias: whether the bias takes part in the denominators and so absorbs relevance.
        first: rule of the first layer when this rule is used as a composite.
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: alpha - beta is not 1, or a negative number.

    Source: Bach et al. 2015 (alpha-beta rule); docs/method.md section 1.
    """

    alpha: float = 2.0
    beta: float = 1.0
    eps: float = 1e-6
    bias: bool = True
    first: Rule | None = None
    detach_bias: bool = False
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("alpha", self.alpha)
        positive("beta", self.beta)
        positive("eps", self.eps)
        if abs(self.alpha - self.beta - 1) > 1e-9:
            raise ValueError(f"alpha - beta must be 1, got alpha={self.alpha!r}, beta={self.beta!r}")

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        g = g.joined()  # once for both shares
        up = layer.share(g, POSITIVE, self.eps, self.bias)
        if self.beta == 0:
            return up * self.alpha
        return self.alpha * up - self.beta * layer.share(g, NEGATIVE, self.eps, self.bias)

    def passes(self, nonnegative: bool) -> float:
        return 4.0 if nonnegative else 8.0


@dataclass(frozen=True)
class ZPlus(Rule):
    """The z+ rule: R_j = a_j sum_k w+_jk R_k / (sum_i a_i w+_ik + b+_k + eps); for signed inputs a+ with W+ and a- with W-.

    Sums give u+ / (u+ + v+), averages likewise. As multipliers: G_j = sum_k w+_jk z_k G_k / (z+_k + eps).

    Args:
        eps: stabilizer, >= 0.
        bias: whether the positive part of the bias takes part in the denominator and so absorbs relevance.
        first: rule of the first layer when this rule is used as a composite, for example ``ZBox(0, 1)``.
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: eps negative or not finite.

    Source: Montavon et al. 2017 (deep Taylor decomposition); Bassi et al. 2024 (Dual ISNet); docs/method.md section 1.
    """

    eps: float = 1e-2
    bias: bool = True
    first: Rule | None = None
    detach_bias: bool = False
    reads = frozenset({"input", "output", "summands", "sum", "pool"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.share(g, POSITIVE, self.eps, self.bias)

    def add(self, layer: Sum, g: Tensor) -> tuple[Tensor, ...]:
        if len(layer.terms) == 1:
            return layer.back(g)
        return layer.back(*sum_zplus(g, *layer.terms, epsilon=self.eps))

    def average_pool(self, layer: Average, g: Tensor) -> Tensor:
        if layer.is_nonnegative:
            return layer.pull(ratio(g, layer.value, layer.value, epsilon=self.eps))
        pulled = layer.pull(ratio(g, layer.value, layer.apply(layer.a.clamp(min=0)), epsilon=self.eps))
        return select_by_sign(layer.a, pulled, torch.zeros_like(pulled))

    def passes(self, nonnegative: bool) -> float:
        return 2.0 if nonnegative else 4.0
