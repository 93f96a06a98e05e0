"""Rules that look at the weights alone, or at nothing: w^2, flat, pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import Scaled, ratio, times
from .base import SMALLEST, Rule, positive
from .views import Activation, Layer, Norm, PartOf


def _spread(layer: Layer, g: Scaled, part: PartOf, bias: bool, eps: float) -> Tensor:
    """R_j = sum_k v_jk R_k / (sum_i v_ik + eps) for non-negative weights v, whatever the input."""
    d = layer.apply(layer.ones(), part, bias)
    d = torch.where(d == 0, 1.0, d)  # it sees padding alone, and has nobody to hand anything on to
    return layer.pull(g.over(layer.value, d.expand_as(layer.value).contiguous(), eps), part)


@dataclass(frozen=True)
class WSquare(Rule):
    """R_j = sum_k w_jk^2 R_k / (sum_i w_ik^2 + b_k^2 + eps), for a first layer whose input may be anything.

    Args:
        eps: stabilizer, >= 0.
        bias: whether b^2 takes part in the denominator.
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: eps negative or not finite.

    Source: Montavon et al. 2017 (w^2 rule); docs/method.md section 1.
    """

    eps: float = 1e-6
    bias: bool = True
    detach_bias: bool = False
    yields_relevance = True
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return _spread(layer, g, torch.square, self.bias, self.eps)


@dataclass(frozen=True)
class Flat(Rule):
    """R_j = sum_k R_k / n_k, n_k the number of inputs that output k sees: relevance is spread evenly.

    Args:
        eps: stabilizer, >= 0.

    Raises:
        ValueError: eps negative or not finite.

    Source: Lapuschkin et al. 2019 (flat rule); docs/method.md section 1.
    """

    eps: float = 1e-6
    yields_relevance = True
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return _spread(layer, g, torch.ones_like, False, self.eps)


@dataclass(frozen=True)
class Pass(Rule):
    """R_j = R_k: relevance unchanged, for layers whose output has the shape of their input, and for norms.

    Raises:
        ValueError: (when applied) the shapes differ.
    """

    yields_relevance = True
    reads = frozenset({"input", "output"})
    families = frozenset({"norm"})

    def norm(self, layer: Norm, g: Tensor) -> Tensor:
        return times(g, layer.value)

    def activation(self, layer: Activation, g: Tensor) -> Tensor:
        return ratio(g, layer.value, layer.a, epsilon=SMALLEST)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        if layer.a.shape != layer.value.shape:
            raise ValueError(
                f"Pass: a layer of input shape {tuple(layer.a.shape)} and output shape {tuple(layer.value.shape)} cannot pass relevance "
                "on unchanged; give it another rule"
            )
        return g.relevance(layer.value)
