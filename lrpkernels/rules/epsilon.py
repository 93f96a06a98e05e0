"""The epsilon rule."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..functional import WHOLE, Scaled, Stabilizer, epsilon_scale, ratio
from .base import SMALLEST, PerImage, Rule, larger, per_image
from .views import Activation, Layer


@dataclass(frozen=True, eq=False)
class Epsilon(PerImage, Rule):
    """R_j = a_j * sum_k w_jk R_k / (z_k + eps), in the form of LRP-Flex: one stabilizer at each ReLU, none elsewhere.

    G passes a ReLU with output u multiplied by u / (u + eps); linear maps, sums and pooling pass it on by their transposed map.
    The factor itself is differentiated when a loss on the heatmap is. Biases absorb relevance.

    Args:
        eps: stabilizer, >= 0, in units of the activations; 0 gives gradient times input. A tensor (B,): one for each image of the
            batch, any floating dtype, a constant; the first dimension of every value must then be the batch.
        first: rule of the first layer, for example ``ZBox(0, 1)``; None: this rule.

    Raises:
        ValueError: eps negative or not finite, or, when applied, not as many as the batch has images.

    Source: Bach et al. 2015 (epsilon rule); Bassi, Decherchi, Cavalli, arXiv 2401.08409 (LRP-Flex); docs/method.md section 1.
    """

    eps: Stabilizer = 1e-2
    first: Rule | None = None

    reads = frozenset[str]()

    def __post_init__(self) -> None:
        per_image("eps", self.eps)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.pull(g.at_relu(layer.activation, self.eps), WHOLE)

    def relu(self, layer: Activation, g: Tensor) -> Tensor:
        return epsilon_scale(g, layer.value, epsilon=self.eps)

    def activation(self, layer: Activation, g: Tensor) -> Tensor:
        return ratio(g, layer.value, layer.a, epsilon=larger(self.eps, SMALLEST))
