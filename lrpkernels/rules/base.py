"""The base of all rules: how one layer passes relevance from its output to its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import isfinite
from typing import cast

from torch import Tensor

from ..functional import Scaled, Stabilizer, epsilon_scale, is_capturing, ratio
from .views import Activation, Attention, Average, Layer, Maximum, Norm, Product, Softmax, Sum

# The forward values that a rule's methods may read: `a`, `value` and `preactivation` of a layer; terms and value of a sum; input and
# output of a pooling layer; what a batch norm took its batch statistics of; the input of a ReLU that stands alone. The outputs of ReLUs and
# what other activations read are always kept.
EVERYTHING = frozenset({"input", "output", "preactivation", "summands", "sum", "pool", "statistics", "relu"})

SMALLEST = 1e-15  # stabilizer of activations under rules without any: f(0) / 0 has to be a number


def positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0."""
    if not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def per_image(name: str, value: Stabilizer) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0, or a tensor (B,) of such numbers."""
    if not isinstance(value, Tensor):
        return positive(name, value)
    if value.dim() != 1 or not value.is_floating_point() or value.requires_grad:
        kind = ", which requires a gradient" if value.requires_grad else ""
        raise ValueError(
            f"{name} must be a number, or a floating tensor of shape [B] that requires no gradient, got {value.dtype} of shape "
            f"{list(value.shape)}{kind}"
        )
    if not is_capturing(value.device) and not bool((value.isfinite() & (value >= 0)).all()):
        raise ValueError(f"{name} must hold finite numbers >= 0, got {value.tolist()}")


def larger(eps: Stabilizer, least: float) -> Stabilizer:
    """The larger of two stabilizers."""
    return eps.clamp(min=least) if isinstance(eps, Tensor) else max(eps, least)


class PerImage:
    """What a dataclass whose ``eps`` may be a tensor compares by: the same tensor, not equal numbers."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        pairs = [(getattr(self, field.name), getattr(other, field.name)) for field in fields(self)]  # type: ignore[arg-type]
        return all(a is b or (not (isinstance(a, Tensor) or isinstance(b, Tensor)) and a == b) for a, b in pairs)

    def __hash__(self) -> int:
        return hash((type(self), *(getattr(self, field.name) for field in fields(self))))  # type: ignore[arg-type]


def reads_of(rule: Rule) -> frozenset[str]:
    """What a rule reads. A subclass may read more than its base does: it has to say so itself."""
    found: frozenset[str] = type(rule).__dict__.get("reads", EVERYTHING)
    return found


def equal_shares(operands: int) -> tuple[float, ...]:
    """The same share of the relevance for each operand."""
    return (1 / operands,) * operands


def shares_without(constants: Sequence[bool]) -> tuple[float, ...]:
    """Equal shares for the operands that are not constants, 0 for those that are; equal ones for all if that leaves none."""
    live = len(constants) - sum(constants)
    return tuple((0.0 if constant else 1 / live) for constant in constants) if live else equal_shares(len(constants))


@dataclass(frozen=True)
class Rule(ABC):
    """Base of all rules. A rule works on multipliers G (R = a * G); what it does not define passes G on unchanged.

    Attributes:
        eps: the rule's stabilizer.
        detach_bias: gradients of a heatmap do not reach biases through the denominators that these take part in.
        yields_relevance: :meth:`linear` (and what :attr:`families` names) returns R at the input instead of G.
        is_gradient: operations hand on their exact vector-Jacobian product, whatever the methods below say (:class:`Gradient`).
        families: of "attention", "product", "norm": those operations that it may be chosen for, by a composite's option of that name or
            by a selector. What a composite chooses for none of these follows the layers' rule, which is AttnLRP's below.
        reads: which forward values its methods read, of ``EVERYTHING`` above: others need not be kept. A subclass sets its own.
    """

    eps = cast(Stabilizer, 1e-6)
    detach_bias = False
    yields_relevance = False
    is_gradient = False
    reads = EVERYTHING
    families = frozenset[str]()

    @property
    def first(self) -> Rule | None:
        """The rule of the first layer when this rule is used as a composite; None: this rule itself."""
        return None

    @abstractmethod
    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        """Through convolution, linear layer or batch norm, with the batch norm merged into it and the ReLU behind it.

        Args:
            layer: see :mod:`lrpkernels.rules.views`.
            g: G at its output, (T*B, C_out, ...), maybe in two parts (``g.total()`` adds them; kernels do it as they load them).

        Returns:
            G at its input, (T*B, C_in, ...) (R itself if ``yields_relevance``).
        """

    def relu(self, layer: Activation, g: Tensor) -> Tensor:
        """Through a ReLU that stands alone (for example behind a sum): R is unchanged, so G is multiplied by ReLU's derivative."""
        return epsilon_scale(g, layer.value, epsilon=0.0)

    def activation(self, layer: Activation, g: Tensor) -> Tensor:
        """Through any other activation a = f(z): R is unchanged, so G is multiplied by a / z.

        The stabilizer only keeps the quotient finite around z = 0: eps, and never more than 1e-6 of it.
        """
        eps = self.eps.clamp(max=1e-6) if isinstance(self.eps, Tensor) else min(self.eps, 1e-6)
        return ratio(g, layer.value, layer.a, epsilon=larger(eps, SMALLEST))

    def add(self, layer: Sum, g: Tensor) -> tuple[Tensor, ...]:
        """Through a sum of branches: shares u / (u + v), so G is the same for both."""
        return layer.back(g)

    def average_pool(self, layer: Average, g: Tensor) -> Tensor:
        """Through an average: a linear map with constant weights."""
        return layer.pull(g)

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        """Through a maximum: the winner takes all."""
        return layer.winner(g)

    # -- operations on several branches, and norms: AttnLRP (Achtibat et al. 2024) ------------------------------------------------

    def attention(self, layer: Attention, g: Tensor) -> tuple[Tensor | None, ...]:
        """Through attention in one operation: as the matrix products and the softmax that it is made of."""
        return layer.back(g, 0.25, 0.25, 0.5)

    def softmax(self, layer: Softmax, g: Tensor) -> Tensor | None:
        """Through a softmax: R = x * gradient, its first-order Taylor term (AttnLRP, Proposition 3.1)."""
        return layer.pull(g)

    def matmul(self, layer: Product, g: Tensor) -> tuple[Tensor | None, ...]:
        """Through a matrix product of branches: the same share for each operand (the uniform rule, Proposition 3.3)."""
        return layer.back(g, equal_shares(len(layer.gates)))

    def product(self, layer: Product, g: Tensor) -> tuple[Tensor | None, ...]:
        """Through an elementwise product: a gate takes nothing; operands of the same kind share equally (Proposition 3.2)."""
        return layer.back(g, shares_without(layer.gates))

    def norm(self, layer: Norm, g: Tensor) -> Tensor:
        """Through a norm: the deviation is a constant (Proposition 3.4), centring a linear map."""
        return layer.pull(g)

    def passes(self, nonnegative: bool) -> float:
        """Passes of a linear layer's size that :meth:`linear` needs at least, beside one forward pass (docs/method.md)."""
        return 1.0


class OperationRule(Rule):
    """Base of the rules for attention, products and norms alone: a composite's options of these names take them, and its selectors."""

    families = frozenset({"attention", "product", "norm"})
    reads = frozenset[str]()

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        """Not for layers with weights; no composite asks for it."""
        raise TypeError(f"{type(self).__name__} is a rule of attention, products and norms, not of layers with weights")
