"""A rule of your own: epsilon with the positive part of the relevance only, for one layer of a network.

python examples/custom_rule.py
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.functional import WHOLE, Scaled
from lrpkernels.rules.views import Layer


@dataclass(frozen=True)
class PositiveEpsilon(lrp.Rule):
    """R_j = a_j sum_k w_jk max(R_k, 0) / (z_k + eps sgn z_k)."""

    eps: float = 1e-2
    reads = frozenset({"input", "output", "preactivation"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        positive = g.total() * (g.total() * layer.value > 0)  # G at the layer's output, R = G * value
        return layer.pull(Scaled(positive).over(layer.value, layer.preactivation(), self.eps), WHOLE)


torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 3))
x = torch.rand(2, 1, 8, 8)
logits, heatmap = lrp.LRP(model, lrp.Composite({"2": PositiveEpsilon()}))(x, target=1)
heatmap.square().sum().backward()
print(lrp.LRP(model, lrp.Composite({"2": PositiveEpsilon()})).explain(x))
print("heatmap", tuple(heatmap.shape), "trainable through it:", model[0].weight.grad is not None)
