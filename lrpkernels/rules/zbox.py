"""The z^B (box) rule for a first layer that reads pixels of known range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..functional import conv_box, ratio
from .base import Rule, layer_input, positive

if TYPE_CHECKING:
    from ..fuse import Block


@dataclass(frozen=True)
class ZBox(Rule):
    """R_x = x * W^T s - l * W+^T s - h * W-^T s,  s = R_h / z,  z = W x + b - l (W+ 1 + b+) - h (W- 1 + b-), stabilized.

    W and b are the first layer merged with its batch norm, b detached; R_h = h * G_h at the first ReLU's output h, that ReLU's own
    factor not applied; the image of ones meets the layer's zero padding as the input does.

    Args:
        low: l, the smallest pixel value: a number, or one per channel.
        high: h, the largest pixel value, likewise; low < high.
        eps: stabilizer, >= 0.
        bias: whether b takes part in z, as above; without it z = W x - l W+ 1 - h W- 1 (what zennit's box rule comes to).

    Raises:
        ValueError: low is not below high, or a length that is not the number of input channels.

    Source: Montavon et al. 2017 and 2019 (z^B rule); docs/method.md section 1.
    """

    low: float | tuple[float, ...] = 0.0
    high: float | tuple[float, ...] = 1.0
    eps: float = 1e-2
    bias: bool = True

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

    def linear(self, block: Block, multipliers: tuple[Tensor, Tensor | None]) -> Tensor:
        g, addend = multipliers
        if addend is not None:
            g = g + addend
        x = layer_input(block)
        weight, bias = block.weight(), block.bias() if self.bias else None
        low, high = self._bound("low", self.low, x), self._bound("high", self.high, x)
        parts = [(x, weight)]
        z = block.preactivation(bias=self.bias)
        for bound, numbers, clamp in ((low, self.low, {"min": 0}), (high, self.high, {"max": 0})):
            if bound is None:
                continue
            w = weight.clamp(**clamp)
            parts.append((bound, w))
            # The same for every image, so one image of the bound's value will do. The bias counts with the mean bound.
            level = sum(_numbers(numbers)) / len(_numbers(numbers))
            b = None if bias is None else level * bias.clamp(**clamp)
            z = z - block.map.forward(bound, w, b)
        geometry = block.map.fused_geometry(weight)
        if geometry is not None:
            bounds = (self._bound_of_channels(numbers, x) for numbers in (self.low, self.high))
            return conv_box(g, block.output.tensor, z, weight, x, *bounds, geometry=geometry, epsilon=self.eps)
        s = ratio(g, block.output.tensor, z, epsilon=self.eps)
        targets = s.shape[0] // x.shape[0]
        pulled = block.map.transpose_each(s, [w for _, w in parts])
        terms = [(v.unflatten(0, (targets, -1)) * a).flatten(0, 1) for (a, _), v in zip(parts, pulled, strict=True)]
        return terms[0] - sum(terms[1:]) if len(terms) > 1 else terms[0]

    def _bound(self, name: str, bound: float | tuple[float, ...], x: Tensor) -> Tensor | None:
        """An image of the bound's value, (1, C, ...); None if it is zero everywhere and drops out."""
        numbers = _numbers(bound)
        if not any(numbers):
            return None
        shape = (1, *x.shape[1:])
        if len(numbers) == 1:
            return torch.full(shape, numbers[0], dtype=x.dtype, device=x.device)
        if x.dim() < 2 or len(numbers) != x.shape[1]:
            raise ValueError(
                f"ZBox: {name} has {len(numbers)} values, the first layer's input has {x.shape[1]} channels"
            )
        image = _on_device(numbers, x.dtype, x.device).view(1, -1, *(1,) * (x.dim() - 2))
        return image.expand(shape).contiguous()

    def _bound_of_channels(self, bound: float | tuple[float, ...], x: Tensor) -> Tensor:
        """(C,) in the arithmetic dtype."""
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        return _on_device(_numbers(bound), dtype, x.device).expand(x.shape[1]).contiguous()


def _on_device(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """As torch.tensor, but filled on the device: a copy from the host cannot be captured in a CUDA graph."""
    return torch.cat([torch.full((1,), number, dtype=dtype, device=device) for number in numbers])


def _numbers(bound: float | tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(v) for v in bound) if isinstance(bound, (tuple, list)) else (float(bound),)
