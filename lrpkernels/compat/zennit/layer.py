"""Layers that models are written with for zennit."""

from __future__ import annotations

from torch import Tensor, nn


class Sum(nn.Module):
    """The sum over one dimension, such as that of stacked branches. Here a plain ``u + v`` means the same.

    Args:
        dim: the dimension.
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, input: Tensor) -> Tensor:
        return input.sum(self.dim)
