"""A rule of your own: epsilon with the positive part of the relevance only, for one layer of a network.

python examples/custom_rule.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.functional import ratio


@dataclass(frozen=True)
class PositiveEpsilon(lrp.Rule):
    """R_j = a_j sum_k w_jk max(R_k, 0) / (z_k + eps sgn z_k)."""

    eps: float = 1e-2

    def linear(self, block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        g, addend = multipliers  # G at the layer's output, R = a * G; the second contribution may be None
        g = g if addend is None else g + addend
        g = torch.where(g * block.output.tensor > 0, g, torch.zeros_like(g))
        s = ratio(g, block.output.tensor, block.preactivation(), epsilon=self.eps)
        return block.map.transpose(s, block.weight())


torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
x = torch.rand(2, 1, 8, 8)
logits, heatmap = lrp.LRP(model, lrp.Composite({"2": PositiveEpsilon()}))(x, target=1)
heatmap.square().sum().backward()
print(lrp.Composite({"2": PositiveEpsilon()}).explain(model, x))
print("heatmap", tuple(heatmap.shape), "trainable through it:", model[0].weight.grad is not None)
