"""Fusion: conv -> batch norm -> ReLU and their shorter forms merge into one block, so that each costs one pass over its data."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from . import functional
from .layers.activation import Relu
from .layers.base import Arrived, Multipliers, Op
from .layers.linear_maps import LinearMap
from .layers.normalization import BatchNorm, can_merge

if TYPE_CHECKING:
    from .rules.base import Rule
    from .tape import Value


class Block(Op):
    """A linear map, the batch norm merged into it and the ReLU behind it; the last two may be missing.

    Attributes:
        map: convolution, linear layer, or a batch norm standing alone.
        norm: batch norm merged into ``map``, or None.
        relu: the activation, or None.
    """

    kind = "block"

    def __init__(self, map: LinearMap, norm: BatchNorm | None, relu: Relu | None) -> None:
        super().__init__(*map.inputs)
        self.map, self.norm, self.relu = map, norm, relu
        self.outputs = (relu or norm or map).outputs
        self.module = map.module

    @property
    def module_type(self) -> type[nn.Module] | None:  # type: ignore[override]
        return self.map.module_type

    def label(self) -> str:
        parts = [op.kind for op in (self.map, self.norm, self.relu) if op is not None]
        return " -> ".join(parts)

    @property
    def input(self) -> Value:
        return self.inputs[0]

    @property
    def activation(self) -> Tensor | None:
        """u, the ReLU's output, or None if the block has no ReLU."""
        return None if self.relu is None else self.output.tensor

    def scale(self) -> Tensor | None:
        """k of the merged batch norm, (C,), with gradients to gamma; None without one."""
        return None if self.norm is None else self.norm.scale()

    def weight(self) -> Tensor:
        """W' = k * W, in the dtype of the block's output."""
        weight = self.map.weight
        if self.norm is not None:
            weight = weight * self.map.per_channel(self.norm.scale())
        return weight.to(self.output.dtype)

    def weight_part(self, sign: int) -> Tensor:
        """W'+ or W'-, the contributions of one sign, in the dtype of the block's output."""
        if sign < 0:
            return self.weight().clamp(max=0)
        scale = None if self.norm is None else self.map.per_channel(self.norm.scale())
        return functional.positive_weight(self.map.weight, scale).to(self.output.dtype)

    def bias(self, detach: bool = True) -> Tensor | None:
        """b' = k * b + c, (C,); ``detach`` cuts b and beta off from gradients while k stays live. None: no bias at all."""
        bias = self.map.bias
        if bias is not None and detach:
            bias = self.map.shift(detach=True) if isinstance(self.map, BatchNorm) else bias.detach()
        if self.norm is not None:
            shift = self.norm.shift(detach=detach)
            bias = shift if bias is None else bias * self.norm.scale() + shift
        return None if bias is None else bias.to(self.output.dtype)

    def preactivation(self, bias: bool = True) -> Tensor:
        """z = W' a + b' with b' detached (or without it): the forward pass's own numbers and, for the weight, its own graph.

        So the loss on the heatmap and the classification share the layer's backward pass.
        """
        known = (self.norm or self.map).output.tensor
        b = self.bias()
        norm = self.map if isinstance(self.map, BatchNorm) else self.norm
        if not torch.is_grad_enabled():
            return known if bias or b is None else known - self._per_output(b)
        if norm is None:
            # b' - b' is 0 and takes back the gradient for b that z's own graph has.
            return (
                known if b is None else known - self._per_output(self._undetached() - b if bias else self._undetached())
            )
        product = (self.input if norm is self.map else self.map.output).present()  # what the batch norm reads
        if product is None or product.dtype != known.dtype:
            a = self.input.tensor if self.input.dtype == self.output.dtype else self.input.tensor.to(self.output.dtype)
            z = self.map.reuse(a, self.weight(), b, known.detach())
            return z if bias or b is None else z - self._per_output(b)
        if norm is not self.map and self.map.bias is not None:
            product = product - self._per_output((self.map.bias - self.map.bias.detach()).to(product.dtype))
        slope = norm.scale()
        z = functional.affine_known(known, product, slope, norm.mean.to(slope.dtype))
        return z if bias or b is None else z - self._per_output(b)

    def _undetached(self) -> Tensor:
        """b', with gradients."""
        bias = self.bias(detach=False)
        assert bias is not None
        return bias

    def _per_output(self, vector: Tensor) -> Tensor:
        """A vector over output channels, to be broadcast against the block's output."""
        return vector if self.map.kind == "linear" else vector.view(-1, *(1,) * (len(self.output.shape) - 2))

    def epsilon(self, multipliers: tuple[Tensor, Tensor | None], epsilon: float) -> Tensor:
        """The epsilon rule in the form of LRP-Flex: one stabilizer, at the ReLU."""
        g, addend = multipliers
        return self.map.epsilon(g, addend, self.activation, self.scale(), epsilon)

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return (rule.linear(self, (multipliers[0], None)),)


Fusion = list[tuple[int, ...]]  # of each fused operation the places of its parts: (map, norm, relu), -1 for none; (op,)


def fuse(ops: list[Op], fusion: Fusion) -> list[Op]:
    """The operations of a tape in order, every :class:`LinearMap` inside a :class:`Block`."""
    found: list[Op] = []
    for parts in fusion:
        if len(parts) == 1:
            found.append(ops[parts[0]])
        else:
            map, norm, relu = (None if place < 0 else ops[place] for place in parts)
            found.append(Block(cast(LinearMap, map), cast("BatchNorm | None", norm), cast("Relu | None", relu)))
    return found


def fusion(ops: list[Op], keep: Collection[Value]) -> Fusion:
    """Which neighbours merge: those whose value in between nobody else reads.

    Args:
        ops: a tape's operations, in order.
        keep: values that must stay visible (the explained output, hidden layers asked for).
    """
    kept = {id(value) for value in keep}
    reader = {id(value): place for place, op in enumerate(ops) for value in op.inputs}

    def follower(place: int, kind: type[Op]) -> int:
        value = ops[place].output
        if value.consumers != 1 or id(value) in kept:
            return -1
        reads = reader.get(id(value), -1)
        return reads if reads >= 0 and type(ops[reads]) is kind else -1

    merged: set[int] = set()
    blocks: dict[int, tuple[int, int, int]] = {}
    for place, op in enumerate(ops):
        if not op.is_linear or place in merged:
            continue
        norm = -1 if type(op) is BatchNorm else follower(place, BatchNorm)
        if norm >= 0 and not can_merge(cast(LinearMap, op), cast(BatchNorm, ops[norm])):
            norm = -1
        relu = follower(max(place, norm), Relu)
        merged |= {place, norm, relu}
        blocks[max(place, norm, relu)] = (place, norm, relu)
    return [blocks.get(place, (place,)) for place in range(len(ops)) if place in blocks or place not in merged]
