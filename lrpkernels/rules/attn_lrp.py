"""AttnLRP, CP-LRP and the uniform rule: what attention, products and norms do with relevance."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import OperationRule, equal_shares, shares_without
from .views import Attention, Product


@dataclass(frozen=True)
class AttnLRP(OperationRule):
    """Softmax by its first-order Taylor term; operands of a product share equally; the deviation of a norm is a constant.

    This is what layers' rules do with these operations, too, so it is needed only to say so of one place. Of an elementwise product
    with a gate (a sigmoid, its kin, a softmax, or a broadcast operand) the signal takes all; :class:`Uniform` shares there as well.

    Source: Achtibat et al., "AttnLRP", ICML 2024, arXiv 2402.05602, Propositions 3.1 to 3.4.
    """


@dataclass(frozen=True)
class CPLRP(OperationRule):
    """Conservative propagation: attention weights, gates and the factor of a norm are constants.

    Values take all of the relevance of attention, so that none reaches queries and keys. In an elementwise product the gate is a
    constant, or, if neither operand is one, what an activation function made: silu(x) in silu(x) * y.

    Source: Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
    """

    def attention(self, layer: Attention, g: Tensor) -> tuple[Tensor | None, ...]:
        return layer.back(g, 0.0, 0.0, 1.0)

    def matmul(self, layer: Product, g: Tensor) -> tuple[Tensor | None, ...]:
        return layer.back(g, shares_without(layer.gates))

    def product(self, layer: Product, g: Tensor) -> tuple[Tensor | None, ...]:
        constants = layer.gates if any(layer.gates) and not all(layer.gates) else layer.activated
        return layer.back(g, shares_without(constants))


@dataclass(frozen=True)
class Uniform(OperationRule):
    """Every operand of a product gets the same share, gates as well; attention as in :class:`AttnLRP`.

    Source: Achtibat et al. 2024, arXiv 2402.05602, Proposition 3.2.
    """

    families = frozenset({"attention", "product"})

    def product(self, layer: Product, g: Tensor) -> tuple[Tensor | None, ...]:
        return layer.back(g, equal_shares(len(layer.gates)))
