"""lxt's explicit epsilon rule on convolutional networks.

lxt 2.1 is made for transformers. Its ``efficient`` part patches transformers' classes (and cannot be imported with transformers 5); for
convolutions its documentation refers to zennit. Its ``explicit`` part has an epsilon rule for any module, which its own composite
(which cannot be imported either) would insert by torch.fx; this module does that.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

_LINEAR = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.MaxPool2d)


class _Mean(nn.Module):
    """A mean over positions as a module that a rule can wrap."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def lxt_network(model: nn.Module, epsilon: float) -> nn.Module:
    """A copy of a network in evaluation mode whose backward pass is lxt's epsilon rule: ReLUs pass relevance, sums share it."""
    from lxt.explicit import functional, rules

    traced = fx.symbolic_trace(copy.deepcopy(model).eval())
    for node in list(traced.graph.nodes):
        if node.op == "call_module":
            module = traced.get_submodule(node.target)
            if isinstance(module, nn.ReLU):
                module.inplace = False
                wrapped: nn.Module = rules.IdentityRule(module)
            elif isinstance(module, _LINEAR):
                wrapped = rules.EpsilonRule(module, 1e-9 if isinstance(module, nn.MaxPool2d) else epsilon)
            else:
                continue
            name = f"{node.name}_by_rule"  # a module that is called twice needs a rule for each call
            traced.add_submodule(name, wrapped)
            node.target = name
        elif node.target in (operator.add, operator.iadd, torch.add):
            node.target = functional.add2
        elif node.op == "call_method" and node.target == "mean":
            traced.add_submodule(f"{node.name}_by_rule", rules.EpsilonRule(_Mean(), epsilon))
            node.op, node.target, node.args = "call_module", f"{node.name}_by_rule", node.args[:1]
    traced.recompile()
    return traced


def lxt_heatmap(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    """lxt's heatmap of the highest logit."""
    net: Any = lxt_network(model, 1e-2)

    def run() -> Tensor:
        image = x.detach().requires_grad_()
        logits = net(image)
        start = torch.zeros_like(logits).scatter_(
            1, logits.argmax(1, keepdim=True), logits.amax(1, keepdim=True).detach()
        )
        return torch.autograd.grad(logits, image, start)[0]

    return run
