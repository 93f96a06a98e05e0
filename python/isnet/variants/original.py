"""Original: every logit."""

from __future__ import annotations

from torch import Tensor

from isnet.variants.base import Explained, Variant


class Original(Variant):
    """Every logit, one at a time: K maps per image. Source: Bassi et al. 2024 (ISNet)."""

    def explained(self, logits: Tensor, place: tuple[int, int] | None = None) -> list[Explained]:
        return [Explained("all", self.epsilon())]
