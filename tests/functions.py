"""Functions as models, their heatmaps, and derivatives by central differences."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

import lrpkernels as lrp
from lrpkernels.errors import FallbackWarning

Map = Callable[[Tensor], Tensor]


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


class Wrapped(nn.Module):
    """A function as a model."""

    def __init__(self, function: Map) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def heatmap_of(function: Map, rule: lrp.Rule | lrp.Composite, x: Tensor, target: int = 1) -> Tensor:
    """The heatmap of a target; no function may fall back to its gradient."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        heatmap: Tensor = lrp.LRP(Wrapped(function), rule)(x, target)[1]
    return heatmap


def slope(loss: Callable[[], Tensor], parameter: Tensor, direction: Tensor, step: float = 1e-6) -> float:
    """The loss's derivative by a parameter along a direction, by central differences. The parameter is as before afterwards."""
    with torch.no_grad():
        parameter.add_(direction, alpha=step)
        up = loss().item()
        parameter.add_(direction, alpha=-2 * step)
        down = loss().item()
        parameter.add_(direction, alpha=step)
    return float((up - down) / (2 * step))
