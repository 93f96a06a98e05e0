"""Gradient times input: an ablation."""

from __future__ import annotations

from torch import Tensor

import lrpkernels as lrp
from isnet.variants.base import Explained, Variant
from isnet.variants.selective import selective_score


class GradientTimesInput(Variant):
    """eta as in Selective with e = 0, plain gradient times input: the ablation ISNet Softmax Grad*Input. One map per image."""

    def composites(self) -> list[lrp.Composite | lrp.Rule]:
        return [lrp.Gradient()]

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained(lambda o: selective_score(o, 0.0), lrp.Gradient())]
