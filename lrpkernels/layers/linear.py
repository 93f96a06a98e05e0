"""Convolutions and dense layers: z = W a + b."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..functional import ConvGeometry, ConvWeight, Late, Scaled
from ..graph import Arrived, Multipliers, Node, Recipe, Value
from ..rules import Rule
from .elementwise import is_gate, made_by_activation
from .registry import Recorder, per_dimension, recorded, records
from .replayed import Replayed


class LinearNode(Node, ABC):
    """z = W a + b with a weight and an optional bias. Subclasses know how to apply V, a part of W, and its transpose.

    Attributes:
        weight: as recorded, in its own dtype.
        bias: b, (channels,), or None.
        channel_dim: the dimension of the input that holds its channels.
    """

    is_linear = True
    channel_dim = 1
    reads_inputs = frozenset({"input"})
    reads_outputs = frozenset({"output", "preactivation"})
    weight: Tensor
    bias: Tensor | None
    _late: Late | None = None

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of output channels."""

    @abstractmethod
    def part(self, part: Any, scale: Tensor | None, dtype: torch.dtype) -> Any:
        """V, the part of k W, in the form that the methods below take; k is over output channels."""

    def per_output(self, vector: Tensor) -> Tensor:
        """A vector over output channels, to be broadcast against the output."""
        return functional.per_channel(vector, len(self.output.shape))

    @abstractmethod
    def apply(self, a: Tensor, weight: Any, bias: Tensor | None, known: Tensor | None = None) -> Tensor:
        """V a + b; ``known``: its value, if the forward pass has computed it already."""

    @abstractmethod
    def pull(self, s: Scaled, weight: Any) -> Tensor:
        """V^T s."""

    def defer(self, gradient: Callable[[Tensor, Tensor, Tensor], Tensor], made: Sequence[int]) -> None:
        """Let the weight's gradient from the relevance pass wait for the classification's, if that saves memory; ``made``: output sizes.

        Called ahead of the forward pass through this layer.
        """
        self._late = functional.late_weight(self.weight, gradient, self.input.shape, made)

    def _waiting(self, weight: Tensor, s: Tensor) -> Late | None:
        """Where the gradient of this weight waits, for the first pass that reads it whole and with gradients; None: it does not."""
        late = self._late
        if late is None or weight is not self.weight or not torch.is_grad_enabled():
            return None
        if not late.fits(self.input.shape, s):
            return None
        self._late = None
        return late

    def pull_by_sign(self, s: Scaled, same: Any, other: Any, a: Tensor) -> Tensor:
        """V^T s where a >= 0, V'^T s elsewhere."""
        made = Scaled(s.tensor())
        return functional.select_by_sign(a, self.pull(made, same), self.pull(made, other))

    def pull_sum(self, s: Sequence[Tensor], weights: Sequence[Any]) -> Tensor:
        """The sum of V^T s over two weights, each with an s of its own."""
        return self.pull(Scaled(s[0]), weights[0]) + self.pull(Scaled(s[1]), weights[1])

    def box(self, s: Scaled, scale: Tensor | None, a: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
        """a * W^T s - low * W+^T s - high * W-^T s; bounds have a's dimensions and are broadcast against it."""
        made = Scaled(s.tensor())
        total = functional.times(self.pull(made, self.part(functional.WHOLE, scale, a.dtype)), a)
        for bound, part in ((low, functional.POSITIVE), (high, functional.NEGATIVE)):
            if bound is not None:
                total = total - functional.times(self.pull(made, self.part(part, scale, a.dtype)), bound)
        return total


class Conv(LinearNode):
    """Convolution or transposed convolution of any dimension."""

    kind = "conv"

    def __init__(self, input: Value, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> None:
        super().__init__(input)
        self.weight, self.bias, self.geometry = weight, bias, geometry

    @property
    def module_type(self) -> type[nn.Module]:  # type: ignore[override]
        plain = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        transposed = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        return (transposed if self.geometry.transposed else plain)[len(self.geometry.stride) - 1]

    @property
    def channels(self) -> int:
        return self.output.shape[1]

    def part(self, part: Any, scale: Tensor | None, dtype: torch.dtype) -> ConvWeight:
        scale = None if scale is None else self._per_channel(scale)
        return functional.conv_weight(self.weight, scale, part, self.geometry, dtype)

    def apply(self, a: Tensor, weight: ConvWeight, bias: Tensor | None, known: Tensor | None = None) -> Tensor:
        return functional.conv_apply(a, weight, bias, self.geometry, known)

    def pull(self, s: Scaled, weight: ConvWeight) -> Tensor:
        late = self._waiting(weight.weight, s.multiplier)
        return functional.conv_pull(s, weight, self.input.form(), self.geometry, late)

    def pull_by_sign(self, s: Scaled, same: ConvWeight, other: ConvWeight, a: Tensor) -> Tensor:
        return functional.conv_pull_by_sign(s, same, other, a, self.geometry)

    def pull_sum(self, s: Sequence[Tensor], weights: Sequence[ConvWeight]) -> Tensor:
        return functional.conv_pull_sum(s, weights, self.input.form(), self.geometry)

    def box(self, s: Scaled, scale: Tensor | None, a: Tensor, low: Tensor | None, high: Tensor | None) -> Tensor:
        varies = [bound is not None and bound.numel() > bound.shape[1] for bound in (low, high)]
        if any(varies):  # by pixel or image
            return super().box(s, scale, a, low, high)
        weight = self.part(functional.WHOLE, scale, a.dtype).weight
        low, high = (None if bound is None else bound.flatten().expand(a.shape[1]) for bound in (low, high))
        return functional.conv_box(s, weight, a, low, high, self.geometry)

    def _per_channel(self, vector: Tensor) -> Tensor:
        """A vector over output channels, shaped to scale the weight."""
        if not self.geometry.transposed:
            return vector.view(-1, *(1,) * (self.weight.dim() - 1))
        # A transposed convolution's weight is (C_in, C_out / groups, ...): one row of factors for each group of input channels.
        groups = self.geometry.groups
        rows = vector.view(groups, 1, -1).expand(-1, self.weight.shape[0] // groups, -1).flatten(0, 1)
        return rows.reshape(*rows.shape, *(1,) * (self.weight.dim() - 2))

    def recipe(self) -> Recipe:
        """The convolution again, in the output's dtype (autocast may have cast what it read)."""
        b, dtype, geometry = self.bias, self.output.dtype, self.geometry
        read, weight = self.a.detach(), self.weight.detach()
        bias, again = None if b is None else b.detach(), self.input.recipe
        kept = read if again is None or not again.is_cheap else None

        def make() -> Tensor:
            a = again() if kept is None and again is not None else cast(Tensor, kept)
            operands = (t if t is None else t.to(dtype) for t in (a, weight, bias))
            with torch.autocast(a.device.type, enabled=False):
                return torch.ops.aten.convolution.default(*operands, *geometry)

        return Recipe(make)


class Linear(LinearNode):
    """A dense layer on the last dimension."""

    kind = "linear"
    module_type = nn.Linear
    channel_dim = -1

    def __init__(self, input: Value, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(input)
        self.weight, self.bias = weight, bias

    @property
    def channels(self) -> int:
        return self.output.shape[-1]

    def part(self, part: Any, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        scale = None if scale is None else scale.view(-1, 1)
        if part == functional.POSITIVE:
            return functional.positive_weight(self.weight, scale).to(dtype)
        return part((self.weight if scale is None else self.weight * scale).to(dtype))

    def apply(self, a: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor | None = None) -> Tensor:
        return F.linear(a, weight, bias)

    def pull(self, s: Scaled, weight: Tensor) -> Tensor:
        made = s.tensor()
        return functional.dense_pull(made, weight, self._waiting(weight, made))

    def per_output(self, vector: Tensor) -> Tensor:
        return vector


class Product(Replayed):
    """A product of several operands that depend on the input, of one with itself among them.

    Args:
        factors: the inputs as often as they occur.
    """

    kind = "product"
    family = "attention"
    linear = False

    def __init__(self, inputs: Sequence[Value], func: Any, args: Any, kwargs: Any, factors: Sequence[Value]) -> None:
        super().__init__(inputs, func, args, kwargs)
        self._factors = factors

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        return rule.matmul(self, multipliers[0])

    @property
    def gates(self) -> tuple[bool, ...]:
        return tuple(map(is_gate, self._factors))

    @property
    def activated(self) -> tuple[bool, ...]:
        return tuple(map(made_by_activation, self._factors))

    def back(self, g: Tensor, shares: Sequence[float]) -> Multipliers:
        if len(set(shares)) == 1:
            return self._vjp([g * shares[0]])
        share_of = {id(value): share for value, share in zip(self._factors, shares, strict=True)}
        pulled = zip(self._vjp([g]), (share_of[id(value)] for value in self.inputs), strict=True)
        return tuple(None if part is None or share == 0 else part * share for part, share in pulled)


@lru_cache(maxsize=1024)
def _geometry(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> ConvGeometry:
    return ConvGeometry(stride, padding, dilation, False, (0,) * len(stride), groups)


def _record_conv(rec: Recorder, func: Any, args: Any, kwargs: Any, spatial: int, transposed: bool) -> Tensor:
    if len(args) == 7 and not kwargs and not transposed:
        # What nn.ConvNd calls: no need to look at every form.
        x, weight, bias, *slide = args
        plain = type(slide[0]) is tuple and type(slide[1]) is tuple and type(slide[2]) is tuple
        value, constant = rec.value(x), rec.value(weight) is None and rec.value(bias) is None
        if plain and value is not None and constant and x.dim() == spatial + 2:
            conv = _deferred(Conv(value, weight, bias, _geometry(*slide)))
            with rec.unsaved_if_cheap(value):
                out = func(*args)
            rec.add(conv, out)
            return out
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    order = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = dict(zip(("input", "weight", "bias", "stride", "padding", *order), args, strict=False))
    options = {**defaults, "bias": None, **given, **kwargs}
    x, weight, bias, stride, padding = (options[name] for name in ("input", "weight", "bias", "stride", "padding"))
    dilation, groups, output_padding = options["dilation"], options["groups"], options["output_padding"]
    if rec.value(bias) is not None:  # it depends on the input: a branch that is added
        names = ("input", "weight", "stride", "padding", *order)
        without = rec.call(func, **{name: options[name] for name in names})
        return rec.call(torch.add, without, rec.call(Tensor.view, bias, -1, *(1,) * spatial))
    if rec.value(weight) is not None and rec.value(x) is not None:  # kernels made from the input
        out = func(*args, **kwargs)
        rec.add(Product(recorded(rec, (x, weight)), func, args, kwargs, (rec.known(x), rec.known(weight))), out)
        return out
    if rec.value(x) is None:
        return rec.unknown(func, args, kwargs)
    if x.dim() == spatial + 1:  # PyTorch's unbatched form
        batched = rec.call(torch.unsqueeze, x, 0)
        arguments = (batched, *args[1:]) if args else ()
        out = _record_conv(rec, func, arguments, kwargs if args else {**kwargs, "input": batched}, spatial, transposed)
        return rec.call(torch.squeeze, out, 0)
    dilation = per_dimension(dilation, spatial)
    if padding == "valid":
        padding = 0
    out = None
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # PyTorch pads one more at the end
            pad = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
            x = rec.call(F.pad, x, pad)
            padding = 0
            out = func(x, weight, bias, stride, 0, dilation, groups)
        else:
            padding = tuple(t // 2 for t in total)
    geometry = ConvGeometry(
        per_dimension(stride, spatial),
        per_dimension(padding, spatial),
        dilation,
        transposed,
        per_dimension(output_padding, spatial),
        groups,
    )
    conv = Conv(rec.known(x), weight, bias, geometry)
    if out is None:
        _deferred(conv)
        with rec.unsaved_if_cheap(conv.input):
            out = func(*args, **kwargs)
    rec.add(conv, out)
    return out


def _deferred(conv: Conv) -> Conv:
    read, weight, geometry = conv.input.shape, conv.weight, conv.geometry
    if not geometry.transposed and weight.dim() == len(read):
        made = (read[0], weight.shape[0], *geometry.output_size(read, weight.shape))
        if min(made) > 0:
            conv.defer(partial(functional.conv_weight_gradient, geometry=geometry), made)
    return conv


for _spatial, _plain, _transposed in (
    (1, torch.conv1d, torch.conv_transpose1d),
    (2, torch.conv2d, torch.conv_transpose2d),
    (3, torch.conv3d, torch.conv_transpose3d),
):
    records(_plain)(partial(_record_conv, spatial=_spatial, transposed=False))
    records(_transposed)(partial(_record_conv, spatial=_spatial, transposed=True))
