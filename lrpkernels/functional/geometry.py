"""How a convolution slides, and which of its weights an op uses."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch


class ConvGeometry(NamedTuple):
    """How a convolution slides: every entry per spatial dimension, as ``torch.ops.aten.convolution`` takes them."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int

    def output_size(self, input: torch.Size, weight: torch.Size) -> list[int]:
        """Spatial sizes of the output of a convolution that is not transposed, given both shapes."""
        sizes = zip(input[2:], weight[2:], self.stride, self.padding, self.dilation, strict=True)
        return [max(0, (size + 2 * p - d * (k - 1) - 1) // s + 1) for size, k, s, p, d in sizes]

    def is_tiling(self, weight: torch.Size) -> bool:
        """Whether windows lie side by side, as those of a patch embedding do: no pixel is read twice."""
        one = (1,) * len(self.stride)
        plain = not self.transposed and self.groups == 1 and not any(self.padding) and self.dilation == one
        return plain and self.stride == tuple(weight[2:]) != one

    def is_depthwise(self, weight: torch.Size) -> bool:
        """Whether every channel has one kernel of its own."""
        return not self.transposed and self.groups == weight[0] and weight[1] == 1

    def is_pointwise(self, weight: torch.Size) -> bool:
        """Whether it is a dense layer at every pixel, or at every so many (stride)."""
        return not self.transposed and self.groups == 1 and not any(self.padding) and max(weight[2:]) == 1


class Weights(IntEnum):
    """Which weights a convolution op uses and how their results combine, a the layer's input (``LrpConvWeights`` in C++)."""

    ALL = 0
    POSITIVE = 1
    NEGATIVE = 2
    SAME_SIGN = 3  # W+ where a >= 0, W- elsewhere
    OPPOSITE_SIGN = 4  # W- where a >= 0, W+ elsewhere
    BOX = 5  # relevance a * (W^T s) - low * (W+^T s) - high * (W-^T s)


def check_part(op: str, weights: int, last: Weights = Weights.NEGATIVE) -> None:
    """Raise RuntimeError unless ``weights`` names weights that this op knows."""
    torch._check(0 <= weights <= last, lambda: f"{op}: weights must be 0 to {int(last)}, got {int(weights)}")
