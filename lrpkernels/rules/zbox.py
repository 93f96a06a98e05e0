"""The z^B (box) rule for a first layer that reads pixels of known range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import NEGATIVE, POSITIVE, Scaled
from .base import Rule, positive
from .views import Layer


@dataclass(frozen=True)
class ZBox(Rule):
    """R_x = x * W^T s - l * W+^T s - h * W-^T s,  s = R_h / z,  z = W x + b - l (W+ 1 + b+) - h (W- 1 + b-), stabilized.

    W and b are the first layer merged with its batch norm; R_h = h * G_h at the first ReLU's output h, that ReLU's own
    factor not applied; the image of ones gets the layer's zero padding as the input does.

    Args:
        low: l, the smallest pixel value: a number, or one per channel.
        high: h, the largest pixel value, likewise; low < high.
        eps: stabilizer, >= 0.
        bias: whether b takes part in z, as above; without it z = W x - l W+ 1 - h W- 1 (what zennit's box rule comes to).
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    Raises:
        ValueError: low is not below high, or a length that is not the number of input channels.

    Source: Montavon et al. 2017 and 2019 (z^B rule); docs/method.md section 1.
    """

    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    eps: float = 1e-2
    bias: bool = True
    detach_bias: bool = False

    yields_relevance = True
    reads = frozenset({"input", "output", "preactivation"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)
        low, high = _numbers(self.low), _numbers(self.high)
        if len(low) > 1 and len(high) > 1 and len(low) != len(high):
            raise ValueError(f"low and high must have the same length, got {len(low)} and {len(high)}")
        lows, highs = low * max(1, len(high) // len(low)), high * max(1, len(low) // len(high))
        if any(not a < b for a, b in zip(lows, highs, strict=True)):
            raise ValueError(f"low must be below high, got low={self.low!r}, high={self.high!r}")

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        low, high = self._bound("low", self.low, layer), self._bound("high", self.high, layer)
        z = layer.preactivation(self.bias)
        for bound, numbers, part in ((low, self.low, POSITIVE), (high, self.high, NEGATIVE)):
            if bound is None:
                continue
            # One image of the bound's value, where the layer reads pixels. The bias counts with the mean bound.
            z = z - layer.apply(bound * layer.ones(), part)
            b = layer.bias(part) if self.bias else None
            if b is not None:
                z = z - sum(_numbers(numbers)) / len(_numbers(numbers)) * b
        return layer.box(g.over(layer.value, z, self.eps), low, high)

    def passes(self, nonnegative: bool) -> float:
        return 3.0  # W, W+ and W- are each applied to s; their denominators come from one image of constants

    def _bound(self, name: str, bound: float | tuple[float, ...], layer: Layer) -> Tensor | None:
        """The bound, to be broadcast against the input; None if it is zero everywhere and drops out."""
        numbers, x = _numbers(bound), layer.a
        if not any(numbers):
            return None
        shape = [1] * x.dim()
        if len(numbers) > 1:
            channels = layer.channel_dim
            if len(numbers) != x.shape[channels]:
                raise ValueError(
                    f"ZBox: {name} has {len(numbers)} values, the first layer's input has {x.shape[channels]} channels"
                )
            shape[channels] = -1
        # As torch.tensor, but filled on the device: a copy from the host cannot be captured in a CUDA graph.
        filled = torch.cat([torch.full((1,), number, dtype=x.dtype, device=x.device) for number in numbers])
        return filled.view(shape)


def _numbers(bound: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(v) for v in bound) if isinstance(bound, (tuple, list)) else (float(bound),)
