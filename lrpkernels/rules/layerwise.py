"""Epsilon in the layer form, and the rule that only normalises sums and averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from .base import Favour, Rule, layer_input, positive, stabilized_ratio, total

if TYPE_CHECKING:
    from ..fuse import Block
    from ..layers.arithmetic import Add
    from ..layers.base import Multipliers
    from ..layers.pooling import AveragePool, MaxPool


@dataclass(frozen=True)
class EpsilonLayerwise(Rule):
    """R_j = a_j sum_k w_jk R_k / (z_k + eps sgn z_k) at every layer: the form of LRP-Block, zennit and captum.

    z = W a + b with the bias detached. ReLUs pass R on unchanged. It agrees with :class:`Epsilon` as eps goes to 0.

    Args:
        eps: stabilizer, >= 0.
        sums: stabilize residual sums, too.
        pools: stabilize pooling layers, too.
        bias: whether the bias takes part in z and so absorbs relevance.
        scaled: eps counts in units of the root mean square of each sample's denominator, not in absolute ones.
        first: rule of the first layer when this rule is used as a composite.

    Raises:
        ValueError: eps negative or not finite.

    Source: Bach et al. 2015 (epsilon rule); Bassi et al., Nature Communications 15:291, 2024 (LRP-Block); docs/method.md section 1.
    """

    eps: float = 1e-2
    sums: bool = True
    pools: bool = True
    bias: bool = True
    scaled: bool = False
    first: Rule | None = None
    reads = frozenset({"input", "output", "preactivation", "sum", "pool"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        g = total(multipliers)
        if not self.scaled and block.map.has_fused_rule(g):
            bias = block.bias() if self.bias else None
            return block.map.fused_rule(g, block.output.tensor, layer_input(block), bias, self.eps, Favour(1.0, 0.0))
        z = block.preactivation(bias=self.bias)
        s = stabilized_ratio(g, block.output.tensor, z, self.eps, self.scaled)
        return block.map.transpose(s, block.weight())

    def _normalized(self, g: Tensor, value: Tensor) -> Tensor:
        """G * t / (t + eps sgn t): what is left of G when a layer's output t is stabilized."""
        return stabilized_ratio(g, value, value, self.eps, self.scaled)

    def add(self, op: Add, multiplier: Tensor) -> Multipliers:
        return super().add(op, self._normalized(multiplier, op.output.tensor) if self.sums else multiplier)

    def average_pool(self, op: AveragePool, multiplier: Tensor) -> Tensor:
        return op.transpose(self._normalized(multiplier, op.output.tensor) if self.pools else multiplier)

    def max_pool(self, op: MaxPool, multiplier: Tensor) -> Tensor:
        return op.winner(self._normalized(multiplier, op.output.tensor) if self.pools else multiplier)


@dataclass(frozen=True)
class Norm(EpsilonLayerwise):
    """Shares in proportion to the contributions, for sums and averages, with a tiny stabilizer; max pooling has none.

    Linear layers that no other rule names follow the epsilon rule in the layer form with the same stabilizer.
    """

    eps: float = 1e-6
    reads = frozenset({"input", "output", "preactivation", "sum", "pool"})

    def max_pool(self, op: MaxPool, multiplier: Tensor) -> Tensor:
        return op.winner(multiplier)
