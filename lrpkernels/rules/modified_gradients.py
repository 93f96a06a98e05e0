"""Gradients in which ReLUs have another derivative: DeconvNet, guided backpropagation, beta smoothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..functional import WHOLE, Scaled, epsilon_scale, times
from .base import positive
from .gradient import Gradient
from .views import Activation, Layer


@dataclass(frozen=True)
class ReLUDeconvNet(Gradient):
    """G_z = max(G_u, 0) at a ReLU u = max(z, 0), whatever z is; everything else by its gradient.

    Source: Zeiler and Fergus 2014; zennit's rule of that name.
    """

    reads = Gradient.reads

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.pull(g if layer.activation is None else Scaled(g.total().clamp(min=0)), WHOLE)

    def relu(self, layer: Activation, g: Tensor) -> Tensor:
        return g.clamp(min=0)


@dataclass(frozen=True)
class ReLUGuidedBackprop(Gradient):
    """G_z = max(G_u, 0) [z > 0] at a ReLU u = max(z, 0); everything else by its gradient.

    Source: Springenberg et al. 2015; zennit's rule of that name.
    """

    reads = Gradient.reads

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        if layer.activation is None:
            return layer.pull(g, WHOLE)
        return layer.pull(Scaled(g.total().clamp(min=0)).at_relu(layer.activation, 0.0), WHOLE)

    def relu(self, layer: Activation, g: Tensor) -> Tensor:
        return epsilon_scale(g.clamp(min=0), layer.value, epsilon=0.0)


@dataclass(frozen=True)
class ReLUBetaSmooth(Gradient):
    """G_z = G_u sigmoid(beta z) at a ReLU u = max(z, 0), softplus' derivative; everything else by its gradient.

    Args:
        beta_smooth: beta, >= 0: large values approach ReLU's own derivative.

    Raises:
        ValueError: beta_smooth negative or not finite.

    Source: Dombrowski et al. 2019; zennit's rule of that name.
    """

    beta_smooth: float = 10.0
    reads = Gradient.reads | {"input", "preactivation", "relu"}

    def __post_init__(self) -> None:
        positive("beta_smooth", self.beta_smooth)

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        if layer.activation is None:
            return layer.pull(g, WHOLE)
        return layer.pull(Scaled(self._smooth(g.total(), layer.preactivation())), WHOLE)

    def relu(self, layer: Activation, g: Tensor) -> Tensor:
        return self._smooth(g, layer.a)

    def _smooth(self, g: Tensor, z: Tensor) -> Tensor:
        return times(g, torch.sigmoid(self.beta_smooth * z))
