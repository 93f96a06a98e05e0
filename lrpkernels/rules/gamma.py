"""The gamma rule, generalised to inputs of either sign."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..functional import Part, Scaled
from .base import Rule, positive
from .views import Layer


@dataclass(frozen=True)
class Gamma(Rule):
    """R_j = a_j sum_k (w_jk + gamma w+_jk) R_k / (sum_i a_i (w_ik + gamma w+_ik) + b_k + gamma b+_k): positive parts are favoured.

    For signed inputs and outputs (the generalised form): where z_k > 0, a+ goes with W + gamma W+ and a- with W + gamma W-; where
    z_k < 0 the two are exchanged, so that contributions of z_k's own sign are favoured.

    Args:
        gamma: >= 0; 0 is the epsilon rule, large values approach alpha 1, beta 0.
        eps: stabilizer, >= 0.
        bias: whether the bias takes part in the denominators and so absorbs relevance.
        first: rule of the first layer when this rule is used as a composite.
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: a negative number.

    Source: Montavon et al. 2019 (gamma rule); docs/method.md section 1.
    """

    gamma: float = 0.25
    eps: float = 1e-6
    bias: bool = True
    first: Rule | None = None
    detach_bias: bool = False
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)
        positive("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.share(g, Part(1.0, self.gamma), self.eps, self.bias, by_output=True)

    def passes(self, nonnegative: bool) -> float:
        return 2.0 if nonnegative else 4.0
