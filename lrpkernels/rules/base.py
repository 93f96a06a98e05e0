"""The base of all rules: how one layer passes relevance from its output to its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite

from torch import Tensor

from ..functional import Scaled, epsilon_scale, ratio
from .views import Activation, Average, Layer, Maximum, Sum

# The forward values that a rule's methods may read: `a`, `value` and `preactivation` of a layer; terms and value of a sum; input and
# output of a pooling layer. What ReLUs and other activations read is always kept.
SMALLEST = 1e-15  # stabilizer of activations under rules without any: f(0) / 0 has to be a number

EVERYTHING = frozenset({"input", "output", "preactivation", "summands", "sum", "pool"})


def positive(name: str, value: float) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0."""
    if not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")


def reads_of(rule: Rule) -> frozenset[str]:
    """What a rule reads. A subclass may read more than its base does: it has to say so itself."""
    found: frozenset[str] = type(rule).__dict__.get("reads", EVERYTHING)
    return found


@dataclass(frozen=True)
class Rule(ABC):
    """Base of all rules. A rule works on multipliers G (R = a * G); what it does not define passes G on unchanged.

    Attributes:
        eps: the rule's stabilizer.
        detach_bias: gradients of a heatmap do not reach biases through the denominators that these take part in.
        yields_relevance: :meth:`linear` returns R at the input instead of G (rules for the first layer).
        reads: which forward values its methods read, of ``EVERYTHING`` above: others need not be kept. A subclass sets its own.
    """

    eps = 1e-6
    detach_bias = False
    yields_relevance = False
    reads = EVERYTHING

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
        return ratio(g, layer.value, layer.a, epsilon=max(min(self.eps, 1e-6), SMALLEST))

    def add(self, layer: Sum, g: Tensor) -> tuple[Tensor, ...]:
        """Through a sum of branches: shares u / (u + v), so G is the same for both."""
        return layer.back(g)

    def average_pool(self, layer: Average, g: Tensor) -> Tensor:
        """Through an average: a linear map with constant weights."""
        return layer.pull(g)

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        """Through a maximum: the winner takes all."""
        return layer.winner(g)

    def passes(self, nonnegative: bool) -> float:
        """Passes of a linear layer's size that :meth:`linear` needs at least, beside one forward pass (docs/method.md)."""
        return 1.0
