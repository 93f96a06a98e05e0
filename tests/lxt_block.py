"""A transformer block in lxt's functions, whose backward passes carry relevance."""

from __future__ import annotations

import torch
from lxt.explicit import functional as lxt
from lxt.explicit import rules as lxt_rules
from torch import Tensor, nn

D = torch.float64


class Lxt(nn.Module):
    """Takes the layers of a block; with ``cp`` attention weights and the activated branch of the gate are constants."""

    def __init__(self, block: nn.Module, cp: bool) -> None:
        super().__init__()
        self.block, self.cp = block, cp

    def dense(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return lxt.linear_epsilon(x, layer.weight, layer.bias, 1e-12)

    def forward(self, x: Tensor) -> Tensor:
        net = self.block

        def heads(layer: nn.Linear) -> Tensor:
            return self.dense(layer, h).unflatten(-1, (2, 3)).transpose(1, 2)

        h = lxt.layer_norm(x, net.norm1.weight, net.norm1.bias, net.norm1.eps)
        q, k, v = heads(net.q), heads(net.k), heads(net.v)
        scores = lxt.mul2(lxt.matmul(q, k.transpose(-2, -1), False, 1e-12), torch.tensor(3**-0.5, dtype=D))
        weights = lxt.softmax(scores, -1)
        out = (
            lxt_rules.epsilon_lrp(torch.matmul, 1e-12, weights.detach(), v)
            if self.cp
            else lxt.matmul(weights, v, False, 1e-12)
        )
        x = lxt.add2(x, self.dense(net.o, out.transpose(1, 2).flatten(2)), False, 1e-12)
        h = lxt.layer_norm(x, net.norm2.weight, net.norm2.bias, net.norm2.eps)
        gate = lxt_rules.identity(net.act, self.dense(net.gate, h))
        product = lxt.mul2(gate.detach() if self.cp else gate, self.dense(net.up, h))
        x = lxt.add2(x, self.dense(net.down, product), False, 1e-12)
        return self.dense(net.head, lxt.mean(x, 1, False, 1e-12))
