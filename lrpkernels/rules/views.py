"""What a rule sees of the layers it is applied to: read this before writing a rule.

A rule gets the multiplier G at a layer's output (relevance R = a * G) and returns G at its input. Shapes: B images, T targets of one batch,
target-major, so that multipliers are (T*B, ...) beside forward values (B, ...). Kernels and convolutions are chosen below these views; a
rule never needs to know which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor, nn

from ..functional import Part, Scaled, Stabilizer

PartOf = Part | Callable[[Tensor], Tensor]  # V of W: a share of it, or any elementwise function


class Recorded(Protocol):
    """Any operation, as a composite sees it when it looks for its rule.

    Attributes:
        kind: "block" for a linear layer, else the name of the operation.
        module: the module that ran it.
        family: "attention" (softmax and matrix products included), "product" or "norm" for operations whose rule a composite chooses
            by that option; None for all others.
        module_type: the module that does the same, for functional calls; None: there is none.
    """

    kind: str

    @property
    def family(self) -> str | None: ...
    @property
    def module(self) -> nn.Module | None: ...
    @property
    def module_type(self) -> type[nn.Module] | None: ...


class Layer(Recorded, Protocol):
    """A convolution, dense layer or batch norm: z = W a + b, with the batch norm behind it merged in, and the ReLU behind both.

    W and b are those after merging: k W and k b + c of a batch norm y = k x + c.
    """

    @property
    def a(self) -> Tensor:
        """The input, (B, C_in, ...), in the dtype that the layer computed in."""

    @property
    def value(self) -> Tensor:
        """The output, (B, C_out, ...): z, or max(z, 0) with a ReLU."""

    @property
    def activation(self) -> Tensor | None:
        """The output of the ReLU; None without one."""

    @property
    def channel_dim(self) -> int:
        """The dimension of ``a`` that holds the input channels: 1, or -1 for a dense layer."""

    def ones(self) -> Tensor:
        """1 for every element of the input, (1 or B, C_in, ...); 0 where data movement ahead of the layer wrote constants (padding)."""

    def preactivation(self, bias: bool = True) -> Tensor:
        """z, (B, C_out, ...), or z without b. With the rule's ``detach_bias`` b is a constant here and below."""

    def bias(self, part: PartOf) -> Tensor | None:
        """V of b, shaped to be added to the output; None if the layer has none."""

    def apply(self, a: Tensor, part: PartOf, bias: bool = False) -> Tensor:
        """V a, plus the same part of b with ``bias``."""

    def pull(self, s: Scaled, part: PartOf) -> Tensor:
        """V^T s, (T*B, C_in, ...)."""

    def share(self, g: Scaled, part: Part, eps: Stabilizer, bias: bool = True, by_output: bool = False) -> Tensor:
        """What most rules do: G_j = sum_k V_jk v_k G_k / (d_k + eps sgn d_k), v the output, d = V a + V b.

        It reads "input" and "output". Inputs below zero use ``part.mirrored``, so that W+ stands for the positive contributions whatever
        the sign of a. With ``by_output`` outputs below zero follow the mirrored part, too.
        """

    def box(self, s: Scaled, low: Tensor | None, high: Tensor | None) -> Tensor:
        """Relevance x * W^T s - low * W+^T s - high * W-^T s; the bounds have its dimensions, None is 0."""


class Sum(Recorded, Protocol):
    """t = x + y or x - y of two branches, or of a branch and a constant."""

    @property
    def value(self) -> Tensor:
        """t, (B, ...)."""

    @property
    def terms(self) -> tuple[Tensor, ...]:
        """The branches with their signs, in the shape of t."""

    def back(self, *multipliers: Tensor) -> tuple[Tensor, ...]:
        """From multipliers at the terms to those at the branches; one multiplier stands for all."""


class Average(Recorded, Protocol):
    """Average pooling, or a mean: a linear map A with constant, non-negative weights."""

    @property
    def a(self) -> Tensor:
        """The input, (B, ...)."""

    @property
    def value(self) -> Tensor:
        """The output, (B, ...)."""

    @property
    def is_nonnegative(self) -> bool:
        """Whether the input is known to hold no negative number."""

    def apply(self, a: Tensor) -> Tensor:
        """A a."""

    def pull(self, s: Tensor) -> Tensor:
        """A^T s, (T*B, ...)."""


class Maximum(Recorded, Protocol):
    """Max pooling."""

    @property
    def value(self) -> Tensor:
        """The output, (B, ...)."""

    def winner(self, multiplier: Tensor) -> Tensor:
        """Each window's multiplier at its winner, (T*B, ...)."""


class Activation(Recorded, Protocol):
    """An elementwise function, a ReLU behind a sum among them."""

    @property
    def a(self) -> Tensor:
        """The input z, (B, ...)."""

    @property
    def value(self) -> Tensor:
        """f(z), (B, ...)."""


class Product(Recorded, Protocol):
    """t = x * y or x @ y of branches (einsum: of any number): linear in each operand.

    Attributes:
        gates: which operands are weights: made by a sigmoid, its kin or a softmax, or (of an elementwise product) broadcast.
        activated: which operands an activation function made.
    """

    @property
    def gates(self) -> tuple[bool, ...]: ...
    @property
    def activated(self) -> tuple[bool, ...]: ...

    def back(self, g: Tensor, shares: Sequence[float]) -> tuple[Tensor | None, ...]:
        """Multipliers at the operands, each of which gets its share of the relevance: share * G * dt/dx; None for a share of 0."""


class Attention(Recorded, Protocol):
    """softmax(Q K^T scale + mask) V in one operation, whose operands depend on the model's input."""

    def back(self, g: Tensor, q: float, k: float, v: float) -> tuple[Tensor | None, ...]:
        """Multipliers at Q, K and V: the share times the gradient, softmax by its own derivative; None for shares of 0."""


class Softmax(Recorded, Protocol):
    """p = softmax(x)."""

    def pull(self, g: Tensor) -> Tensor | None:
        """p (G - sum p G): its first-order Taylor term, R = x * gradient."""


class Norm(Recorded, Protocol):
    """Layer, group, instance or RMS norm, y = w (x - mean) / deviation + b."""

    @property
    def a(self) -> Tensor:
        """x, (B, ...)."""

    @property
    def value(self) -> Tensor:
        """y, (B, ...)."""

    def pull(self, g: Tensor) -> Tensor:
        """Through w / deviation, a constant factor, and the subtraction of the mean, a linear map."""
