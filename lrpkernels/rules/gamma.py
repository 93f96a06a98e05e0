"""The gamma rule, generalised to inputs of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.functional import leaky_relu

from .base import Favour, Rule, is_nonnegative, layer_input, positive, select_by_sign, stabilized_ratio, total

if TYPE_CHECKING:
    from ..fuse import Block


@dataclass(frozen=True)
class Gamma(Rule):
    """R_j = a_j sum_k (w_jk + gamma w+_jk) R_k / (sum_i a_i (w_ik + gamma w+_ik) + b_k + gamma b+_k): positive parts are favoured.

    For signed inputs and outputs (the generalised form): where z_k > 0, a+ meets W + gamma W+ and a- meets W + gamma W-; where
    z_k < 0 the two change places, so that contributions of z_k's own sign are favoured.

    Args:
        gamma: >= 0; 0 is the epsilon rule, large values approach alpha 1, beta 0.
        eps: stabilizer, >= 0.
        bias: whether the (detached) bias takes part in the denominators and so absorbs relevance.
        scaled: eps counts in units of the root mean square of each sample's denominator, not in absolute ones.
        first: rule of the first layer when this rule is used as a composite.

    Raises:
        ValueError: a negative number.

    Source: Montavon et al. 2019 (gamma rule); docs/method.md section 1.
    """

    gamma: float = 0.25
    eps: float = 1e-6
    bias: bool = True
    scaled: bool = False
    first: Rule | None = None
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("gamma", self.gamma)
        positive("eps", self.eps)

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        g = total(multipliers)
        signed = block.relu is None  # behind a ReLU only z > 0 carries relevance
        if not self.scaled and block.map.has_fused_rule(g):
            result = self._fused(block, g, 1)
            return result + self._fused(block, g, -1) if signed else result
        if not is_nonnegative(block):
            result = self._share(block, g, 1)
            return result + self._share(block, g, -1) if signed else result
        a, weight, bias = layer_input(block), block.weight(), block.bias() if self.bias else None
        up = self._favoured(weight, 1)
        d = block.map.forward(a, up, None if bias is None else self._favoured(bias, 1))
        s = self._ratio(block, g, 1, d)
        if not signed:
            return block.map.transpose(s, up)
        # z = a W + b is known, so the sum with W- favoured needs no convolution: d+ + d- = (2 + gamma) (a W + b).
        d = (2 + self.gamma) * self._preactivation(block) - d
        return block.map.transpose_sum((s, self._ratio(block, g, -1, d)), (up, self._favoured(weight, -1)))

    def _fused(self, block: Block, g: Tensor, sign: int) -> Tensor:
        """The part of the outputs of one sign by the layer's own kernel."""
        value, a, bias = self._value(block, sign), layer_input(block), block.bias() if self.bias else None
        return block.map.fused_rule(g, value, a, bias, self.eps, Favour(1.0, self.gamma, sign))

    def _favoured(self, weight: Tensor, sign: int) -> Tensor:
        """W + gamma W+, or W + gamma W-."""
        factor = 1 + self.gamma
        # Where gamma is 0 both are W; a leaky ReLU is one pass where clamping, scaling and adding are three.
        return leaky_relu(weight * factor, 1 / factor) if sign > 0 else leaky_relu(weight, factor)

    def _preactivation(self, block: Block) -> Tensor:
        """a W + b with the bias that takes part."""
        z, bias = block.preactivation(), block.bias()
        if self.bias or bias is None:
            return z
        return z - bias.view(-1, *(1,) * (z.dim() - 2)) if block.map.kind != "linear" else z - bias

    def _ratio(self, block: Block, g: Tensor, sign: int, d: Tensor) -> Tensor:
        return stabilized_ratio(g, self._value(block, sign), d, self.eps, self.scaled)

    @staticmethod
    def _value(block: Block, sign: int) -> Tensor:
        """The outputs of one sign."""
        z = block.output.tensor
        return z if block.relu is not None else z.clamp(min=0) if sign > 0 else z.clamp(max=0)

    def _share(self, block: Block, g: Tensor, sign: int) -> Tensor:
        """The part of the outputs of one sign, for inputs of either."""
        a, weight, bias = layer_input(block), block.weight(), block.bias() if self.bias else None
        same, other = self._favoured(weight, sign), self._favoured(weight, -sign)
        b = None if bias is None else self._favoured(bias, sign)
        d = block.map.forward(a.clamp(min=0), same, b) + block.map.forward(a.clamp(max=0), other, None)
        s = self._ratio(block, g, sign, d)
        return select_by_sign(a, block.map.transpose(s, same), block.map.transpose(s, other))
