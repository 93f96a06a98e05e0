"""The z^B (box) rule for a layer that reads pixels of known range."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputWarning
from ..functional import NEGATIVE, POSITIVE, Scaled, is_capturing
from .base import Rule, positive
from .views import Layer

TOLERANCE = 0.1  # how far an input may leave the bounds, in units of their distance: interpolation may overshoot
Bound = float | tuple[float, ...] | list[float] | Tensor


@dataclass(frozen=True, eq=False, repr=False)
class ZBox(Rule):
    """R_x = x * W^T s - l * W+^T s - h * W-^T s,  s = R_h / z,  z = W x + b - l (W+ 1 + b+) - h (W- 1 + b-), stabilized.

    W and b are the layer merged with its batch norm; R_h = h * G_h at the ReLU's output h, that ReLU's own factor not applied. With
    bounds per channel or pixel W+ 1 and W- 1 become W+ l and W- h, and b+ and b- count with the mean bound of the image.

    Args:
        low: l, the smallest value of the layer's input: a number; one per channel (a tuple, list or 1-d tensor; channels are the last
            dimension ahead of a dense layer, else the second); or a tensor that broadcasts to that input, (C, 1, 1), (C, H, W),
            (B, C, H, W), .... A constant for gradients.
        high: h, the largest value, likewise; low < high.
        eps: stabilizer, >= 0.
        bias: whether b takes part in z, as above; without it z = W x - W+ l - W- h (what zennit's box rule comes to).
        detach_bias: gradients of a heatmap leave the bias in the denominator out, as in the public code of ISNet.

    An input that leaves the bounds, for which the shares have the wrong sign, draws an :class:`lrpkernels.InputWarning`, once for each
    rule object. Looked for in every pass on the CPU, elsewhere in the first one of each shape.

    Raises:
        ValueError: low is not below high; bounds that do not fit together or, when applied, the layer's input.

    Source: Montavon et al. 2017 and 2019 (z^B rule); docs/method.md section 1.
    """

    low: Bound = 0.0
    high: Bound = 1.0
    eps: float = 1e-2
    bias: bool = True
    detach_bias: bool = False

    yields_relevance = True
    reads = frozenset({"input", "output", "preactivation"})

    def __post_init__(self) -> None:
        positive("eps", self.eps)
        self._check(_are_below(self.low, self.high))

    def _check(self, below: bool) -> None:
        if not below:
            raise ValueError(f"low must be below high, got low={_text(self.low)}, high={_text(self.high)}")

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ZBox)
            and (type(self), self.eps, self.bias, self.detach_bias)
            == (type(other), other.eps, other.bias, other.detach_bias)
            and _same(self.low, other.low)
            and _same(self.high, other.high)
        )

    def __hash__(self) -> int:
        return hash((type(self), self.eps, self.bias))

    def __repr__(self) -> str:
        bounds = f"low={_text(self.low)}, high={_text(self.high)}"
        return (
            f"{type(self).__name__}({bounds}, eps={self.eps!r}, bias={self.bias!r}, detach_bias={self.detach_bias!r})"
        )

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        low, high = _bound("low", self.low, layer), _bound("high", self.high, layer)
        if _are_mixed(self.low, self.high) and low is not None and high is not None and not is_capturing(low.device):
            self._check(bool((low < high).all()))
        self._look(layer, low, high)
        z, least = layer.preactivation(self.bias), None
        for bound, given, part in ((low, self.low, POSITIVE), (high, self.high, NEGATIVE)):
            if bound is None:
                continue
            # One image of bounds that are the same for every image, where the layer reads pixels.
            term = layer.apply(_filled(bound, layer.ones()), part)
            b = layer.bias(part) if self.bias else None
            if b is not None:
                term = term + _mean(given, bound, z.dim()) * b
            least = term if least is None else least + term
        if least is not None:  # one pass over z, which has all images
            z = z - least
        return layer.box(g.over(layer.value, z, self.eps), low, high)

    def _look(self, layer: Layer, low: Tensor | None, high: Tensor | None) -> None:
        """Warn of an input outside of the bounds."""
        x = layer.a.detach()
        seen: set[torch.Size] | None = self.__dict__.setdefault("_seen", set())
        readable = type(x) is Tensor and x.numel() and x.device.type != "meta" and not is_capturing(x.device)
        if seen is None or not readable or (x.device.type != "cpu" and x.shape in seen):
            return
        seen.add(x.shape)
        if not self._leaves(x, low, high):
            return
        x = torch.where(layer.ones() != 0, x, (torch.zeros_like(x) if low is None else low))  # padding is no data
        if self._leaves(x, low, high):
            self.__dict__["_seen"] = None
            least, most = torch.aminmax(x)
            warnings.warn(
                f"ZBox: the layer's input, in [{float(least):.3g}, {float(most):.3g}], leaves the rule's range, low={_text(self.low)}, "
                f"high={_text(self.high)}; give the range of what the layer reads (of normalised pixels (0 - mean) / std and (1 - mean) / "
                "std, one number per channel)",
                InputWarning,
                stacklevel=2,
            )

    def _leaves(self, x: Tensor, low: Tensor | None, high: Tensor | None) -> bool:
        zero = x.new_zeros(())
        low, high = (zero if low is None else low), (zero if high is None else high)
        if low.numel() == high.numel() == 1:
            low, high, (least, most) = low.reshape(()), high.reshape(()), torch.aminmax(x)
            slack = TOLERANCE * (high - low)
            return bool((least < low - slack) | (most > high + slack))
        slack = TOLERANCE * (high - low)
        return bool(((x < low - slack) | (x > high + slack)).any())

    def passes(self, nonnegative: bool) -> float:
        return 3.0  # W, W+ and W- are each applied to s; their denominators come from one image of bounds


def _bound(name: str, bound: Bound, layer: Layer) -> Tensor | None:
    """A bound with the dimensions of the layer's input, 1 where it does not vary; None if it is zero everywhere and drops out."""
    x = layer.a
    if isinstance(bound, Tensor):
        found = bound.detach().to(x)
    else:
        # As torch.tensor, but filled on the device: a copy from the host cannot be captured in a CUDA graph.
        found = torch.cat([torch.full((1,), number, dtype=x.dtype, device=x.device) for number in _numbers(bound)])
    if found.dim() <= 1:
        channels = x.shape[layer.channel_dim]
        if found.numel() not in (1, channels):
            raise ValueError(f"ZBox: {name} has {found.numel()} values, the layer's input has {channels} channels")
        shape = [1] * x.dim()
        shape[layer.channel_dim] = found.numel()
        zero = not isinstance(bound, Tensor) and not any(_numbers(bound))
        return None if zero else found.view(shape)
    fits = found.dim() <= x.dim() and all(
        own in (1, size) for own, size in zip(found.shape[::-1], x.shape[::-1], strict=False)
    )
    if not fits:
        raise ValueError(
            f"ZBox: {name} of shape {tuple(found.shape)} does not broadcast to the layer's input of shape {tuple(x.shape)}; bounds are "
            "those of what the layer reads, behind any data movement"
        )
    return found.view(*(1,) * (x.dim() - found.dim()), *found.shape)


def _filled(bound: Tensor, ones: Tensor) -> Tensor:
    """bound * ones: where ones are everywhere a view, which tells convolutions that planes hold one number each."""
    if any(ones.stride()):
        return bound * ones
    return bound.expand(torch.broadcast_shapes(bound.shape, ones.shape))  # bounds may differ by image


def _mean(given: Bound, bound: Tensor, dimensions: int) -> float | Tensor:
    """The mean bound of each image, to be broadcast against the layer's output; a number if that is given by numbers."""
    if not isinstance(given, Tensor):
        return sum(_numbers(given)) / len(_numbers(given))
    return bound.flatten(1).mean(1).view(-1, *(1,) * (dimensions - 1))


def _numbers(bound: Bound) -> tuple[float, ...]:
    return tuple(float(v) for v in bound) if isinstance(bound, (tuple, list)) else (float(bound),)


def _are_below(low: Bound, high: Bound) -> bool:
    """Whether low < high everywhere.

    Raises:
        ValueError: they do not fit together.
    """
    if not isinstance(low, Tensor) and not isinstance(
        high, Tensor
    ):  # without tensors: a rule may be made at every step
        lows, highs = _numbers(low), _numbers(high)
        if len(lows) > 1 and len(highs) > 1 and len(lows) != len(highs):
            raise ValueError(f"low and high must have the same length, got {len(lows)} and {len(highs)}")
        pairs = zip(lows * max(1, len(highs) // len(lows)), highs * max(1, len(lows) // len(highs)), strict=True)
        return all(a < b for a, b in pairs)
    tensors = (
        b.detach() if isinstance(b, Tensor) else torch.tensor(_numbers(b), dtype=torch.float64) for b in (low, high)
    )
    below, above = tensors
    if _are_mixed(low, high):
        return True
    try:
        return bool((below.to(above.device) < above).all())
    except RuntimeError:
        shapes = f"{tuple(below.shape)} and {tuple(above.shape)}"
        raise ValueError(f"low and high must broadcast against each other, got shapes {shapes}") from None


def _are_mixed(low: Bound, high: Bound) -> bool:
    """Whether one is a bound per channel, the other one per pixel: which dimension is the channels' is known when the rule is applied."""
    dims = [bound.dim() if isinstance(bound, Tensor) else int(len(_numbers(bound)) > 1) for bound in (low, high)]
    return min(dims) == 1 < max(dims)


def _same(bound: Bound, other: Bound) -> bool:
    if isinstance(bound, Tensor) or isinstance(other, Tensor):
        both = isinstance(bound, Tensor) and isinstance(other, Tensor)
        return bound is other or (both and bound.device == other.device and torch.equal(bound, other))  # type: ignore[arg-type, union-attr]
    return _numbers(bound) == _numbers(other)


def _text(bound: Bound) -> str:
    return f"<tensor of shape {tuple(bound.shape)}>" if isinstance(bound, Tensor) else repr(bound)
