"""A linear layer with the batch norm merged into it and the ReLU behind it: what rules work on (:class:`lrpkernels.rules.views.Layer`)."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional
from ..functional import WHOLE, Part, Scaled, Stabilizer
from ..graph import Arrived, Multipliers, Node, Value, marks
from ..rules import Rule
from ..rules.views import PartOf
from .activation import Relu
from .batch_norm import BatchNorm
from .linear import LinearNode


class Block(Node):
    """Convolution, dense layer or batch norm [-> batch norm] [-> ReLU].

    Attributes:
        linear: convolution, dense layer, or a batch norm standing alone.
        norm: batch norm merged into ``linear``, or None.
        relu: the activation, or None.
    """

    kind = "block"

    def __init__(self, linear: LinearNode, norm: BatchNorm | None, relu: Relu | None) -> None:
        super().__init__(*linear.inputs)
        self.linear, self.norm, self.relu = linear, norm, relu
        self.outputs = (relu or norm or linear).outputs
        self.module = linear.module
        self._parts: dict[PartOf, Any] = {}  # made for the current rule
        self._ones: Tensor | None = None
        self._padded = False  # whether the rule has asked where the input holds data, and it holds padding, too
        self._detaches = False  # whether the current rule cuts biases off from gradients

    @property
    def module_type(self) -> type[nn.Module] | None:  # type: ignore[override]
        return self.linear.module_type

    def label(self) -> str:
        return " -> ".join(node.kind for node in self.nodes())

    def nodes(self) -> list[Node]:
        """The one to three operations that this block is made of."""
        return [node for node in (self.linear, self.norm, self.relu) if node is not None]

    def made(self) -> list[Value]:
        """The values that its operations made, in order; the last is the block's output."""
        return [node.outputs[0] for node in self.nodes()]

    def makes_any(self, ids: Container[int]) -> bool:
        """Whether one of these values, by id, is made here."""
        return (
            id(self.outputs[0]) in ids
            or id(self.linear.outputs[0]) in ids
            or (self.norm is not None and id(self.norm.outputs[0]) in ids)
        )

    def until(self, value: Value) -> Block:
        """The part of this block that ends in ``value``, the output of one of its operations."""
        if value is self.output:
            return self
        norm = self.norm
        return Block(self.linear, norm if norm is not None and value is norm.output else None, None)

    def beyond(self, value: Value) -> Node | None:
        """The part of this block that reads ``value``, the output of one of its operations; None: it is the block's."""
        if value is self.output:
            return None
        if self.norm is not None and value is self.linear.output:
            return Block(self.norm, None, self.relu)
        return self.relu

    def release(self) -> None:
        for node in self.nodes():
            node.release()

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        self._detaches = rule.detach_bias
        try:
            found = rule.linear(self, multipliers[0])
            if self._padded and rule.yields_relevance:  # what holds no data takes none
                found = functional.times(found, self.ones())
            return (found,)
        finally:
            self._parts.clear()

    def gradient(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        norm = self.linear if isinstance(self.linear, BatchNorm) else self.norm
        if norm is None or norm.batch_eps is None:
            return self.propagate(multipliers, rule)
        g = multipliers[0].total() if self.relu is None else rule.relu(self.relu, multipliers[0].total())
        (normed,) = norm.gradient((g,), rule)
        if norm is self.linear or normed is None:
            return (normed,)
        return (self.linear.pull(Scaled(normed), self.linear.part(WHOLE, None, normed.dtype)),)

    def behind_relu(self, relevance: Tensor) -> tuple[Block, Scaled]:
        """R at the output, as R at z of the block without its ReLU, which leaves it unchanged; from there on it takes the place of G z."""
        block = self if self.relu is None else Block(self.linear, self.norm, None)
        return block, Scaled.of_relevance(relevance, block.value)

    # -- what rules see: rules/views.py ------------------------------------------------------------------------------------------

    @property
    def a(self) -> Tensor:
        return self._cast(self.input.tensor)

    @property
    def activation(self) -> Tensor | None:
        return None if self.relu is None else self.value

    @property
    def channel_dim(self) -> int:
        return self.linear.channel_dim

    def ones(self) -> Tensor:
        if self._ones is None:  # kept: once the walk has passed, the operations ahead are forgotten
            mark, a = marks(self.input), self.a
            self._padded = mark is not None
            self._ones = a.new_ones(()).expand(a[:1].shape) if mark is None else mark.to(a.dtype)
        return self._ones

    @property
    def is_nonnegative(self) -> bool:
        """Whether the input holds no negative number: known from the operations ahead of it, or seen in the model's own input.

        Pixels are checked on the CPU only (elsewhere the host would wait for the device), once, and not if they require a gradient:
        at 0 it would be one-sided.
        """
        value = self.input
        if not value.nonnegative and value.is_input:
            x = value.tensor
            looks = x.device.type == "cpu" and not functional.is_capturing(x.device)
            if looks and not x.requires_grad and x.numel():
                value.nonnegative = bool(x.detach().amin() >= 0)
        return value.nonnegative

    def bias(self, part: PartOf) -> Tensor | None:
        b = self._bias()
        return None if b is None else self._per_output(part(b))

    def preactivation(self, bias: bool = True) -> Tensor:
        """z = W a + b (or without b): the forward pass's own numbers and, for the weight, its own graph.

        So the loss on the heatmap and the classification share the layer's backward pass.
        """
        known = (self.norm or self.linear).value
        b = self._bias()
        norm = self.linear if isinstance(self.linear, BatchNorm) else self.norm
        if not torch.is_grad_enabled():
            return known if bias or b is None else known - self._per_output(b)
        if norm is None:
            if b is None or (bias and not self._detaches):
                return known
            live = self._bias(detach=False)
            assert live is not None
            # b - b is 0 and cancels the gradient for b that z's own graph has.
            return known - self._per_output(live - b if bias else live)
        product = (self.input if norm is self.linear else self.linear.output).present()  # what the batch norm reads
        if product is None or product.dtype != known.dtype:
            z = self.linear.apply(self.a, self._part(WHOLE), b, known.detach())
            return z if bias or b is None else z - self._per_output(b)
        own = self.linear.bias
        if norm is not self.linear and own is not None and self._detaches:
            product = product - self._per_output((own - own.detach()).to(product.dtype))
        slope = norm.scale()
        shift = None if norm.beta is None or self._detaches else norm.beta
        z = functional.affine_known(known, product, slope, norm.mean.to(slope.dtype), shift)
        return z if bias or b is None else z - self._per_output(b)

    def apply(self, a: Tensor, part: PartOf, bias: bool = False) -> Tensor:
        b = self._bias() if bias else None
        return self.linear.apply(a, self._part(part), None if b is None else part(b))

    def pull(self, s: Scaled, part: PartOf) -> Tensor:
        if s.carrier is not None:
            s = Scaled(s.total())
        if s.denominator is None and (part is WHOLE or part == WHOLE):  # k scales s, and W is unchanged
            if self.norm is not None:
                s = Scaled(s.multiplier, s.addend, s.output, self.norm.scale(), None, None, s.eps)
            return self.linear.pull(s, self.linear.part(WHOLE, None, s.multiplier.dtype))
        return self.linear.pull(s, self._part(part))

    def share(self, g: Scaled, part: Part, eps: Stabilizer, bias: bool = True, by_output: bool = False) -> Tensor:
        if by_output and self.relu is None:  # behind a ReLU only z > 0 carries relevance
            return self._share_of_signs(g.joined(), part, eps, bias)
        return self._share(g, part, eps, bias, self.value)

    def box(self, s: Scaled, low: Tensor | None, high: Tensor | None) -> Tensor:
        return self.linear.box(s, None if self.norm is None else self.norm.scale(), self.a, low, high)

    # -- how ---------------------------------------------------------------------------------------------------------------------

    def _share(self, g: Scaled, part: Part, eps: Stabilizer, bias: bool, value: Tensor) -> Tensor:
        if isinstance(self.linear, BatchNorm) and not isinstance(eps, Tensor):
            return self.linear.share(*g.carried(value), self.a, self._bias() if bias else None, part, eps)
        if part == WHOLE and (self.norm or self.linear).output.is_held:
            return self.pull(g.over(value, self.preactivation(bias), eps), part)
        if part == WHOLE or self.is_nonnegative:
            return self.pull(g.over(value, self.apply(self.a, part, bias), eps), part)
        a = self.a
        d = self.apply(a.clamp(min=0), part, bias) + self.apply(a.clamp(max=0), part.mirrored)
        return self.linear.pull_by_sign(g.over(value, d, eps), self._part(part), self._part(part.mirrored), a)

    def _share_of_signs(self, g: Scaled, part: Part, eps: Stabilizer, bias: bool) -> Tensor:
        """Outputs above zero by this part, those below by the mirrored one."""
        halves, parts = g.by_sign(self.value), (part, part.mirrored)
        if isinstance(self.linear, BatchNorm) or not self.is_nonnegative:
            up, down = (self._share(g, p, eps, bias, value) for p, (g, value) in zip(parts, halves, strict=True))
            return up + down
        # z = a W + b is known, so the mirrored sum needs no convolution: d+ + d- = (2 whole + positive) (a W + b).
        d = self.apply(self.a, part, bias)
        other = (2 * part.whole + part.positive) * self.preactivation(bias) - d
        s = [g.over(value, t, eps).tensor() for (g, value), t in zip(halves, (d, other), strict=True)]
        return self.linear.pull_sum(s, [self._part(p) for p in parts])

    def _part(self, part: PartOf) -> Any:
        """V of the merged weight; made once for a rule, which may ask for it several times."""
        if part not in self._parts:
            scale = None if self.norm is None else self.norm.scale()
            self._parts[part] = self.linear.part(part, scale, self.output.dtype)
        return self._parts[part]

    def _bias(self, detach: bool | None = None) -> Tensor | None:
        """k * b + c, (C,); ``detach`` (the rule's wish) cuts b and beta off from gradients, k stays live. None: no bias at all."""
        detach = self._detaches if detach is None else detach
        bias = self.linear.bias
        if bias is not None and detach:
            bias = self.linear.shift(detach=True) if isinstance(self.linear, BatchNorm) else bias.detach()
        if self.norm is not None:
            shift = self.norm.shift(detach=detach)
            bias = shift if bias is None else bias * self.norm.scale() + shift
        return None if bias is None else self._cast(bias)

    def _cast(self, tensor: Tensor) -> Tensor:
        """In the dtype that the layer computed in (autocast may have cast what it read)."""
        return tensor if tensor.dtype == self.output.dtype else tensor.to(self.output.dtype)

    def _per_output(self, vector: Tensor) -> Tensor:
        """A vector over output channels, to be broadcast against the block's output."""
        return self.linear.per_output(vector)


def can_merge(linear: LinearNode, norm: BatchNorm) -> bool:
    """A batch norm can be merged if its channels are the layer's (a Linear on a sequence puts them last)."""
    channel_last_linear = linear.kind == "linear" and len(linear.output.shape) > 2
    return not channel_last_linear and norm.mean.shape == (linear.channels,)
