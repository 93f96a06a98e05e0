"""Convolutions and linear layers: z = W a + b."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import functional
from ..checkpoint import of_convolution
from ..functional import ConvGeometry, SharedWeight
from .base import Arrived, Multipliers, Op, bind, records

if TYPE_CHECKING:
    from ..rules.base import Favour, Rule
    from ..tape import Tape, Value


class LinearMap(Op):
    """z = W a + b with a weight and an optional bias. Subclasses know how to apply W, its transpose, and W scaled per output channel.

    Attributes:
        weight: as recorded, in its own dtype.
        bias: b, (channels,), or None.
        shared: of a layer that makes the weight gradients of its relevance passes in its own backward pass.
    """

    is_linear = True
    reads_inputs = frozenset({"input"})
    reads_outputs = frozenset({"output", "preactivation"})
    weight: Tensor
    bias: Tensor | None
    shared: SharedWeight | None = None

    @property
    @abstractmethod
    def channels(self) -> int:
        """Number of output channels."""

    def propagate(self, multipliers: Arrived, rule: Rule) -> Multipliers:
        raise AssertionError("linear maps are propagated as blocks; see lrpkernels.fuse")

    @abstractmethod
    def epsilon(
        self,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        """Multiplier at the input under the epsilon rule; see :func:`lrpkernels.functional.conv_epsilon`."""

    @abstractmethod
    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W a + b with other weights than the recorded ones."""

    def reuse(self, input: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor) -> Tensor:
        """:meth:`forward` when its value is ``known`` already, for maps that are worth not computing twice."""
        return self.forward(input, weight, bias)

    @abstractmethod
    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        """W^T s with other weights than the recorded ones."""

    def transpose_each(self, s: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        """W^T s for several weights that share s."""
        return [self.transpose(s, weight) for weight in weights]

    def transpose_sum(self, s: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
        """The sum of W^T s over two weights, each with an s of its own."""
        return self.transpose(s[0], weights[0]) + self.transpose(s[1], weights[1])

    def fused_geometry(self, weight: Tensor) -> ConvGeometry | None:
        """The convolution's geometry where fused kernels pick W+ and W- as they load ``weight``, else None."""
        return None

    def has_fused_rule(self, g: Tensor) -> bool:
        """Whether :meth:`fused_rule` is there for multipliers like ``g``."""
        return False

    def fused_rule(
        self, g: Tensor, value: Tensor, input: Tensor, bias: Tensor | None, epsilon: float, favour: Favour
    ) -> Tensor:
        """The multiplier at the input under a rule with the weights whole W + positive W+, by one kernel.

        Args:
            g: multiplier at the output of the block.
            value, input: its output and input.
            bias: that takes part in the denominator, by the same shares, or None.
            epsilon: stabilizer.
            favour: the rule.
        """
        raise AssertionError("see has_fused_rule")

    @abstractmethod
    def per_channel(self, vector: Tensor) -> Tensor:
        """A vector over output channels, shaped to scale the weight."""

    def _weight(self, like: Tensor) -> Tensor:
        return self.weight if self.weight.dtype == like.dtype else self.weight.to(like.dtype)


class Conv(LinearMap):
    """Convolution or transposed convolution of any dimension."""

    kind = "conv"
    repeats = True

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

    def epsilon(
        self,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        return functional.conv_epsilon(
            multiplier,
            self._weight(multiplier),
            self.inputs[0].form(),
            output,
            scale,
            geometry=self.geometry,
            addend=addend,
            epsilon=epsilon,
            shared=self.shared,
        )

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return functional.conv_map(input, weight, bias, self.geometry)

    def reuse(self, input: Tensor, weight: Tensor, bias: Tensor | None, known: Tensor) -> Tensor:
        return functional.conv_map(input, weight, bias, self.geometry, known)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return functional.conv_transpose(s, weight, self.inputs[0].form(), self.geometry)

    def fused_geometry(self, weight: Tensor) -> ConvGeometry | None:
        return self.geometry if functional.has_fused_conv(weight, self.geometry) else None

    def transpose_each(self, s: Tensor, weights: Sequence[Tensor]) -> Sequence[Tensor]:
        # A first layer has few input channels: stacked, the weights share one pass over s and fill the vector registers better.
        if self.geometry.transposed or self.geometry.groups != 1 or self.weight.shape[1] > 4:
            return super().transpose_each(s, weights)
        return self.transpose(s, torch.cat(list(weights), 1)).chunk(len(weights), 1)

    def transpose_sum(self, s: tuple[Tensor, Tensor], weights: tuple[Tensor, Tensor]) -> Tensor:
        # Stacked along the output channels the sum is one convolution, worth it where weights are small beside what they make.
        if self.geometry.transposed or self.geometry.groups != 1 or self.weight.numel() > self.inputs[0].shape.numel():
            return super().transpose_sum(s, weights)
        return self.transpose(torch.cat(s, 1), torch.cat(weights, 0))

    def per_channel(self, vector: Tensor) -> Tensor:
        if not self.geometry.transposed:
            return vector.view(-1, *(1,) * (self.weight.dim() - 1))
        # A transposed convolution's weight is (C_in, C_out / groups, ...): one row of factors for each group of input channels.
        groups = self.geometry.groups
        rows = vector.view(groups, 1, -1).expand(-1, self.weight.shape[0] // groups, -1).flatten(0, 1)
        return rows.reshape(*rows.shape, *(1,) * (self.weight.dim() - 2))


class Linear(LinearMap):
    """A dense layer on the last dimension."""

    kind = "linear"
    repeats = True
    module_type = nn.Linear

    def __init__(self, input: Value, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__(input)
        self.weight, self.bias = weight, bias

    @property
    def channels(self) -> int:
        return self.output.shape[-1]

    def epsilon(
        self,
        multiplier: Tensor,
        addend: Tensor | None,
        output: Tensor | None,
        scale: Tensor | None,
        epsilon: float,
    ) -> Tensor:
        if addend is not None or output is not None or scale is not None:
            multiplier = functional.epsilon_scale(multiplier, output, scale, addend=addend, epsilon=epsilon)
        if self.shared is not None:
            return functional.linear_transpose(multiplier, self.weight, self.shared)
        return multiplier @ self._weight(multiplier)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(input, weight, bias)

    def transpose(self, s: Tensor, weight: Tensor) -> Tensor:
        return s @ weight

    def per_channel(self, vector: Tensor) -> Tensor:
        return vector.view(-1, 1)


def _tuple(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value) * (n if len(value) == 1 else 1)


@lru_cache(maxsize=1024)
def _geometry(
    stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> ConvGeometry:
    return ConvGeometry(stride, padding, dilation, False, (0,) * len(stride), groups)


def _record_conv(tape: Tape, func: Any, args: Any, kwargs: Any, spatial: int, transposed: bool) -> Tensor:
    if (
        len(args) == 7 and not kwargs and not transposed and not tape.checkpoint
    ):  # what nn.ConvNd calls: no need to look at every form
        x, weight, bias, *slide = args
        plain = type(slide[0]) is tuple and type(slide[1]) is tuple and type(slide[2]) is tuple
        value = tape.value(x)
        if plain and value is not None and tape.value(weight) is None and x.dim() == spatial + 2:
            out = func(*args)
            tape.add(Conv(value, weight, bias, _geometry(*slide)), out)
            return out
    defaults = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "output_padding": 0}
    order = ("output_padding", "groups", "dilation") if transposed else ("dilation", "groups")
    given = dict(zip(("input", "weight", "bias", "stride", "padding", *order), args, strict=False))
    options = {**defaults, "bias": None, **given, **kwargs}
    x, weight, bias, stride, padding = (options[name] for name in ("input", "weight", "bias", "stride", "padding"))
    dilation, groups, output_padding = options["dilation"], options["groups"], options["output_padding"]
    if tape.value(x) is None or tape.value(weight) is not None:
        return _unrecorded(tape, func, args, kwargs)
    if x.dim() == spatial + 1:  # PyTorch's unbatched form
        from .structure import record_call

        batched = record_call(tape, torch.unsqueeze, (x, 0), {})
        arguments = (batched, *args[1:]) if args else ()
        out = _record_conv(tape, func, arguments, kwargs if args else {**kwargs, "input": batched}, spatial, transposed)
        return record_call(tape, torch.squeeze, (out, 0), {})
    dilation = _tuple(dilation, spatial)
    if padding == "valid":
        padding = 0
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):  # PyTorch pads one more at the end
            from .structure import record_call

            pad = [side for t in reversed(total) for side in (t // 2, t - t // 2)]
            x = record_call(tape, F.pad, (x, pad), {})
            padding = 0
            out = func(x, weight, bias, stride, 0, dilation, groups)
        else:
            padding = tuple(t // 2 for t in total)
            out = func(*args, **kwargs)
    else:
        out = None
    geometry = ConvGeometry(
        _tuple(stride, spatial),
        _tuple(padding, spatial),
        dilation,
        transposed,
        _tuple(output_padding, spatial),
        groups,
    )
    value = tape.known(x)
    op = Conv(value, weight, bias, geometry)
    if out is None and tape.checkpoint and not transposed and _may_share(x, weight):
        out, op.shared = functional.shared_conv(x, weight, bias, geometry)
    elif out is None:
        out = func(*args, **kwargs)
    tape.add(op, out)
    if tape.checkpoint:
        tape.known(out).recipe = of_convolution(value, weight, bias, geometry, out.dtype)
    return out


def _unrecorded(tape: Tape, func: Any, args: Any, kwargs: Any) -> Any:
    from .base import _record_unknown

    return _record_unknown(tape, func, args, kwargs, func(*args, **kwargs))


def _register_convs() -> None:
    forms = (
        (1, torch.conv1d, torch.conv_transpose1d),
        (2, torch.conv2d, torch.conv_transpose2d),
        (3, torch.conv3d, torch.conv_transpose3d),
    )
    for spatial, conv, transposed in forms:
        for func, flag in ((conv, False), (transposed, True)):

            def recorder(
                tape: Tape, func: Any, args: Any, kwargs: Any, spatial: int = spatial, flag: bool = flag
            ) -> Tensor:
                return _record_conv(tape, func, args, kwargs, spatial, flag)

            records(func)(recorder)


_register_convs()


@records(F.linear)
def _linear(tape: Tape, func: Any, args: Any, kwargs: Any) -> Tensor:
    x, weight, bias = bind(args, kwargs, "input", "weight", "bias")
    if tape.value(x) is None or tape.value(weight) is not None or x.dim() < 2:
        return _unrecorded(tape, func, args, kwargs)
    op = Linear(tape.known(x), weight, bias)
    if tape.checkpoint and x.dim() == 2 and _may_share(x, weight):
        out, op.shared = functional.shared_linear(x, weight, bias)
    else:
        out = func(x, weight, bias)
    tape.add(op, out)
    return out


def _may_share(x: Tensor, weight: Tensor) -> bool:
    """Whether the layer should make all its weight gradients at once; autocast would have its casts in between."""
    return not torch.is_autocast_enabled(x.device.type) and functional.sharing_pays(x, weight)
