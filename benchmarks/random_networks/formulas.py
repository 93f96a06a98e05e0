"""The rules by their formulas (docs/rules.md), on dense matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LAYERWISE = ("EpsilonLayerwise", "Norm")
WEIGHTS_ONLY = ("ZBox", "WSquare", "Flat")
YIELDING = (*WEIGHTS_ONLY, "Pass")  # R itself, not G


@dataclass(frozen=True)
class RuleSpec:
    """A rule by its name and numbers."""

    name: str
    eps: float = 1e-2
    alpha: float = 2.0
    gamma: float = 0.25
    bias: bool = True
    low: float = 0.0
    high: float = 1.0


def stabilized(d: Tensor, eps: float) -> Tensor:
    return d + torch.where(d >= 0, eps * torch.ones_like(d), -eps)


def relu_factor(u: Tensor, rule: RuleSpec) -> Tensor:
    return u / (u + rule.eps) if rule.name == "Epsilon" else (u > 0).to(u.dtype)


def through_linear(
    rule: RuleSpec, a: Tensor, W: Tensor, b: Tensor | None, pattern: Tensor, v: Tensor, u: Tensor | None, g: Tensor, data: Tensor,
    is_relevance: bool,
) -> Tensor:  # fmt: skip
    """G at the input (R itself for rules that yield it): a [B, N], W [N, M], b [M], v = output, u = ReLU's output or None, g [B, M].

    ``data`` [B, N] is 0 where the input holds padding, which takes no part in rules that look at weights or bounds alone. With
    ``is_relevance`` g is R at the output, which is then that ahead of the ReLU.
    """
    up, down, ap, an = W.clamp(min=0), W.clamp(max=0), a.clamp(min=0), a.clamp(max=0)
    zero = torch.zeros(W.shape[1], dtype=W.dtype)
    full = zero if b is None else b
    b = full if rule.bias else zero
    own, r = a >= 0, g if is_relevance else g * v

    def share(same: Tensor, other: Tensor, bias: Tensor, r: Tensor = r) -> Tensor:
        s = r / stabilized(ap @ same + an @ other + bias, rule.eps)
        return torch.where(own, s @ same.T, s @ other.T)

    if rule.name == "Pass":
        return r
    if rule.name == "Epsilon":
        if is_relevance:
            return (r / stabilized(v, rule.eps)) @ W.T
        return (g if u is None else g * relu_factor(u, rule)) @ W.T
    if rule.name in LAYERWISE:
        return (r / stabilized(a @ W + b, rule.eps)) @ W.T
    if rule.name == "ZPlus":
        return share(up, down, b.clamp(min=0))
    if rule.name == "AlphaBeta":
        beta = rule.alpha - 1
        return rule.alpha * share(up, down, b.clamp(min=0)) - beta * share(down, up, b.clamp(max=0))
    if rule.name == "Gamma":
        more, less, above = W + rule.gamma * up, W + rule.gamma * down, v >= 0
        found = share(more, less, b + rule.gamma * b.clamp(min=0), r * above)
        return found if u is not None else found + share(less, more, b + rule.gamma * b.clamp(max=0), r * ~above)
    if rule.name == "ZBox":
        low, high = rule.low * data, rule.high * data
        z = a @ W + b - low @ up - high @ down - rule.low * b.clamp(min=0) - rule.high * b.clamp(max=0)
        s = r / stabilized(z, rule.eps)
        return data * a * (s @ W.T) - low * (s @ up.T) - high * (s @ down.T)
    assert rule.name in ("WSquare", "Flat"), rule.name
    weights, extra = (W.square(), b.square()) if rule.name == "WSquare" else (pattern, zero)
    d = data @ weights + extra
    d = torch.where(d == 0, 1.0, d) + rule.eps  # an output that sees padding alone hands nothing on
    return data * ((r / d) @ weights.T)
