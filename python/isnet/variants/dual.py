"""Dual: all logits together, by z+ and by epsilon."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

import lrpkernels as lrp
from isnet.variants.base import Explained, Variant, first_rule
from lrpkernels.functional import NEGATIVE, POSITIVE, Scaled, ratio, select_by_sign
from lrpkernels.rules.views import Layer, Maximum


@dataclass(frozen=True)
class PositiveEvidence(lrp.ZPlus):
    """z+ that starts from the positive evidence of the logits, y+ = a+ W+ + a- W- + b+, instead of from the logits y.

    Started from y, the classes' positive and negative logits would cancel in the sum, and with them the background that they rest on.
    It applies where a linear layer yields the logits; after any other last operation the map starts from y.

    Args:
        logits: the output of the layer where the pass starts.
        pools: stabilize max pooling, too, as LRP-Block does.
    """

    logits: Tensor | None = None
    pools: bool = False
    reads = lrp.ZPlus.reads

    def linear(self, layer: Layer, g: Scaled) -> Tensor:
        if layer.value is not self.logits:
            return super().linear(layer, g)
        a = layer.a
        evidence = layer.apply(a.clamp(min=0), POSITIVE, bias=True) + layer.apply(a.clamp(max=0), NEGATIVE)
        s = g.over(evidence, evidence, self.eps)
        return select_by_sign(a, layer.pull(s, POSITIVE), layer.pull(s, NEGATIVE))

    def max_pool(self, layer: Maximum, g: Tensor) -> Tensor:
        return layer.winner(ratio(g, layer.value, layer.value, epsilon=self.eps) if self.pools else g)


class Dual(Variant):
    """All logits together, once by z+ from their positive evidence, once by epsilon from their sum: two maps per image, z+ first.

    z^B at the input of each.

    Source: arXiv 2401.08409 (Dual ISNet); docs/method.md section 2.
    """

    has_unlike_maps = True

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        return [self._zplus(None), self.epsilon()]

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(logit_sum, self._zplus(logits)), Explained(logit_sum, self.epsilon())]

    def _zplus(self, logits: Tensor | None) -> lrp.Rule:
        first, pools = first_rule(self.eps, self.input_range), self.form == "layerwise"
        return PositiveEvidence(self.eps, first=first, logits=logits, pools=pools, detach_bias=True)


def logit_sum(logits: Tensor) -> Tensor:
    """The sum of all logits of each image, [B]."""
    return logits.sum(1)
