"""What a rule is: how one layer hands relevance from its output to its input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from .. import _capture

if TYPE_CHECKING:
    from ..fuse import Block
    from ..layers.activation import Activation, Relu
    from ..layers.arithmetic import Add
    from ..layers.base import Multipliers
    from ..layers.pooling import AveragePool, MaxPool


# The forward values that a rule's methods may read: a, v and z = W' a + b' of :meth:`Rule.linear`; summands and result of a sum; input
# and output of a pooling layer. What ReLUs and other activations read is always there.
EVERYTHING = frozenset({"input", "output", "preactivation", "summands", "sum", "pool"})


class Favour(NamedTuple):
    """How much of all contributions to z takes part in a rule, and how much of those of one sign besides.

    Attributes:
        whole, positive: 1 and 0 for the epsilon rule in layer form, 0 and 1 for z+, 1 and gamma for the gamma rule.
        sign: -1: the negative contributions in place of the positive ones.
    """

    whole: float
    positive: float
    sign: int = 1


def positive(name: str, value: float, zero: bool = True) -> None:
    """Raise ValueError unless ``value`` is a finite number >= 0 (> 0 if not ``zero``)."""
    if not isinstance(value, (int, float)) or not isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} must be a finite number {'>=' if zero else '>'} 0, got {value!r}")


def total(multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
    """The sum of a multiplier's two contributions."""
    g, addend = multipliers
    return g if addend is None else g + addend


def layer_input(block: Block) -> Tensor:
    """a, in the dtype the layer computed in (autocast may have cast it)."""
    a = block.input.tensor
    return a if a.dtype == block.output.dtype else a.to(block.output.dtype)


def is_nonnegative(block: Block) -> bool:
    """Whether a layer's input holds no negative number: known from the operations ahead of it, or seen in the model's own input.

    Pixels are looked at on the CPU only (elsewhere the host would wait for the device), once, and not where they take a gradient: at 0
    it would be that of one side.
    """
    value = block.input
    if not value.nonnegative and value.behind_input and value.producer is None:
        x = value.tensor
        seen = x.device.type == "cpu" and not _capture.is_capturing(x.device)
        if seen and not x.requires_grad and x.numel():
            value.nonnegative = bool(x.detach().amin() >= 0)
    return value.nonnegative


def stabilized_ratio(g: Tensor, value: Tensor, denominator: Tensor, eps: float, scaled: bool) -> Tensor:
    """s = G v / (d + eps sgn d); with ``scaled`` eps counts in units of each sample's root mean square of d."""
    from ..functional import ratio

    return ratio(g, *normalized(value, denominator, scaled), epsilon=eps)


def normalized(value: Tensor, denominator: Tensor, scaled: bool) -> tuple[Tensor, Tensor]:
    """Value and denominator, with ``scaled`` in units of each sample's root mean square of the denominator."""
    if not scaled:
        return value, denominator
    square = denominator.square().mean(tuple(range(1, denominator.dim())), keepdim=True)
    # Ahead of the root, whose slope at 0 is infinite.
    norm = torch.where(square > 0, square, torch.ones_like(square)).sqrt()
    return value / norm, denominator / norm


def select_by_sign(a: Tensor, where_positive: Tensor, where_negative: Tensor | None) -> Tensor:
    """Per element the first tensor where a >= 0, else the second (None: zero); both may carry T targets of a's batch."""
    shape = (-1, a.shape[0])
    up = where_positive.unflatten(0, shape)
    down = up.new_zeros(()) if where_negative is None else where_negative.unflatten(0, shape)
    return torch.where(a >= 0, up, down).flatten(0, 1)


@dataclass(frozen=True)
class Rule(ABC):
    """Base of all rules. A rule works on multipliers G (R = a * G); what it does not define passes G on unchanged.

    Attributes:
        yields_relevance: :meth:`linear` returns R at the input instead of G (rules for the first layer).
        reads: which forward values its methods read, of ``EVERYTHING`` above: others need not be kept. A subclass says it anew.
    """

    yields_relevance = False
    reads = EVERYTHING

    @property
    def first(self) -> Rule | None:
        """The rule of the first layer when this rule is used as a composite; None: this rule itself."""
        return None

    @abstractmethod
    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        """Through convolution, linear layer or batch norm, with the batch norm merged into it and the ReLU behind it.

        Args:
            block: the layer.
            multipliers: G at the block's output and, possibly, a second contribution to be added to it.

        Returns:
            G at the block's input (R itself if ``yields_relevance``).
        """

    def relu(self, op: Relu, multiplier: Tensor) -> Tensor:
        """Through a ReLU that stands alone (behind a sum, say): R is unchanged, so G meets ReLU's own derivative."""
        from ..functional import epsilon_scale

        return epsilon_scale(multiplier, op.output.tensor, epsilon=0.0)

    def activation(self, op: Activation, multiplier: Tensor) -> Tensor:
        """Through any other activation a = f(z): R is unchanged, so G meets a / z (stabilized by 1e-6 around z = 0)."""
        from ..functional import ratio

        return ratio(multiplier, op.output.tensor, op.inputs[0].tensor, epsilon=1e-6)

    def add(self, op: Add, multiplier: Tensor) -> Multipliers:
        """Through a sum of branches: shares u / (u + v), so G is the same for both."""
        return tuple(op.share(multiplier, index) for index in range(len(op.inputs)))

    def average_pool(self, op: AveragePool, multiplier: Tensor) -> Tensor:
        """Through an average: a linear map with constant weights."""
        return op.transpose(multiplier)

    def max_pool(self, op: MaxPool, multiplier: Tensor) -> Tensor:
        """Through a maximum: the winner takes all."""
        return op.winner(multiplier)
