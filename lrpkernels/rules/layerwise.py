"""Epsilon in the layer form, and the rule that only normalises sums and averages."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..functional import WHOLE, Scaled, Stabilizer, ratio
from .base import PerImage, Rule, per_image
from .views import Average, Layer, Maximum, Sum


@dataclass(frozen=True, eq=False)
class EpsilonLayerwise(PerImage, Rule):
    """R_j = a_j sum_k w_jk R_k / (z_k + eps sgn z_k) at every layer: the form of LRP-Block, zennit and captum.

    z = W a + b. ReLUs pass R on unchanged. It agrees with :class:`Epsilon` as eps goes to 0.

    Args:
        eps: stabilizer, >= 0; a tensor (B,): one for each image of the batch, as in :class:`Epsilon`.
        sums: stabilize residual sums, too.
        pools: stabilize pooling layers, too.
        bias: whether the bias takes part in z and so absorbs relevance.
        first: rule of the first layer when this rule is used as a composite.
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: eps negative or not finite, or, when applied, not as many as the batch has images.

    Source: Bach et al. 2015 (epsilon rule); Bassi et al., Nature Communications 15:291, 2024 (LRP-Block); docs/method.md section 1.
    """

    eps: Stabilizer = 1e-2
    sums: bool = True
    pools: bool = True
    bias: bool = True
    first: Rule | None = None
    detach_bias: bool = False
    reads = frozenset({"input", "output", "preactivation", "sum", "pool"})

    def __post_init__(self) -> None:
        per_image("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.share(g, WHOLE, self.eps, self.bias)

    def _normalized(self, g: Tensor, value: Tensor) -> Tensor:
        """G * t / (t + eps sgn t): what is left of G when a layer's output t is stabilized."""
        return ratio(g, value, value, epsilon=self.eps)

    def add(self, layer: Sum, g: Tensor) -> tuple[Tensor, ...]:
        return layer.back(self._normalized(g, layer.value) if self.sums else g)

    def average_pool(self, layer: Average, g: Tensor) -> Tensor:
        return layer.pull(self._normalized(g, layer.value) if self.pools else g)

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        return layer.winner(self._normalized(g, layer.value) if self.pools else g)


@dataclass(frozen=True, eq=False)
class Norm(EpsilonLayerwise):
    """Shares in proportion to the contributions, for sums and averages, with a tiny stabilizer; max pooling has none.

    Linear layers that no other rule names follow the epsilon rule in the layer form with the same stabilizer.
    """

    eps: Stabilizer = 1e-6
    reads = frozenset({"input", "output", "preactivation", "sum", "pool"})

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        return layer.winner(g)
