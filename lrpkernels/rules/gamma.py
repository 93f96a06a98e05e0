"""The gamma rule, generalised to inputs of either sign."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .base import Rule, layer_input, positive, select_by_sign, stabilized_ratio, total

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
        result = self._share(block, g, 1)
        if block.relu is None:  # behind a ReLU only z > 0 carries relevance
            result = result + self._share(block, g, -1)
        return result

    def _share(self, block: Block, g: Tensor, sign: int) -> Tensor:
        same, other = ({"min": 0}, {"max": 0}) if sign > 0 else ({"max": 0}, {"min": 0})
        weight = block.weight()
        bias = block.bias() if self.bias else None
        a, z = layer_input(block), block.output.tensor
        w = weight + self.gamma * weight.clamp(**same)
        b = None if bias is None else bias + self.gamma * bias.clamp(**same)
        value = z if block.relu is not None else torch.where(z > 0 if sign > 0 else z < 0, z, torch.zeros_like(z))
        if block.input.nonnegative:
            d = block.map.forward(a, w, b)
            return block.map.transpose(stabilized_ratio(g, value, d, self.eps, self.scaled), w)
        w_other = weight + self.gamma * weight.clamp(**other)
        d = block.map.forward(a.clamp(min=0), w, b) + block.map.forward(a.clamp(max=0), w_other, None)
        s = stabilized_ratio(g, value, d, self.eps, self.scaled)
        return select_by_sign(a, block.map.transpose(s, w), block.map.transpose(s, w_other))
