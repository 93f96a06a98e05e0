"""Plain gradients."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..functional import WHOLE, Scaled
from .base import Rule
from .views import Layer


@dataclass(frozen=True)
class Gradient(Rule):
    """The gradient of the explained score, so that R = a * gradient: the exact "eps = 0" of the epsilon rule, and no LRP.

    Every operation hands on its vector-Jacobian product: ReLU's derivative is 0 at 0 as in PyTorch, activations have their own f', products
    both of their terms, and the statistics of norms (batch statistics in training mode included), the divisors and softmax are
    differentiated (those of ``nn.SyncBatchNorm`` over several processes are constants). x * G equals autograd's gradient times input
    wherever the recording is complete, which :func:`lrpkernels.verify` rests on. Differentiable like every rule.

    Used in a composite it makes single layers follow their gradient. Under :class:`Epsilon` with eps 0 activations other than ReLU hand
    on f(z) / z, gates and divisors nothing, as LRP has it.

    Source: Simonyan et al. 2014 (gradients); Shrikumar et al. 2016 (gradient times input); docs/rules.md.
    """

    is_gradient = True
    families = frozenset({"attention", "product", "norm"})
    reads = frozenset({"statistics"})

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        return layer.pull(g.at_relu(layer.activation, 0.0), WHOLE)
