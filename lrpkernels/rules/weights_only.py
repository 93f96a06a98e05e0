"""Rules that look at the weights alone, or at nothing: w^2, flat, pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import ratio
from .base import Rule, layer_input, positive, total

if TYPE_CHECKING:
    from ..fuse import Block


def _spread(
    block: Block, multipliers: tuple[Tensor, Tensor | None], weight: Tensor, bias: Tensor | None, eps: float
) -> Tensor:
    """R_j = sum_k v_jk R_k / (sum_i v_ik + eps) for non-negative weights v, whatever the input."""
    a = layer_input(block)
    ones = torch.ones((1, *a.shape[1:]), dtype=a.dtype, device=a.device)
    d = block.map.forward(ones, weight, bias)
    value = block.output.tensor
    s = ratio(total(multipliers), value, d.expand_as(value).contiguous(), epsilon=eps)
    return block.map.transpose(s, weight)


@dataclass(frozen=True)
class WSquare(Rule):
    """R_j = sum_k w_jk^2 R_k / (sum_i w_ik^2 + b_k^2 + eps), for a first layer whose input may be anything.

    Args:
        eps: stabilizer, >= 0.
        bias: whether b^2 takes part in the denominator.

    Raises:
        ValueError: eps negative or not finite.

    Source: Montavon et al. 2017 (w^2 rule); docs/method.md section 1.
    """

    eps: float = 1e-6
    bias: bool = True
    yields_relevance = True
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        bias = block.bias() if self.bias else None
        return _spread(block, multipliers, block.weight().square(), None if bias is None else bias.square(), self.eps)


@dataclass(frozen=True)
class Flat(Rule):
    """R_j = sum_k R_k / n_k, n_k the number of inputs that output k sees: relevance is spread evenly.

    Args:
        eps: stabilizer, >= 0.

    Raises:
        ValueError: eps negative or not finite.

    Source: Lapuschkin et al. 2019 (flat rule); docs/method.md section 1.
    """

    eps: float = 1e-6
    yields_relevance = True
    reads = frozenset({"input", "output"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        return _spread(block, multipliers, torch.ones_like(block.weight()), None, self.eps)


@dataclass(frozen=True)
class Pass(Rule):
    """R_j = R_k: relevance unchanged, for layers whose output has the shape of their input.

    Raises:
        ValueError: (when applied) the shapes differ.
    """

    yields_relevance = True
    reads = frozenset({"output"})

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        if block.input.shape != block.output.shape:
            raise ValueError(
                f"Pass: a {block.map.kind} layer of input shape {tuple(block.input.shape)} and output shape "
                f"{tuple(block.output.shape)} cannot pass relevance on unchanged"
            )
        g, value = total(multipliers), block.output.tensor
        return (g.unflatten(0, (-1, value.shape[0])) * value).flatten(0, 1)
