"""P set automatically: the share of the heatmap loss follows from the sizes of the two losses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DECAY = 0.9  # of the running means, per step with a heatmap: ten steps' memory


class Balance:
    """P = m_h / (m_c + m_h), m_c and m_h the running means of classification and heatmap loss.

    With this share the weighted sum (1 - P) L_c + P L_h has, up to its length, the gradient of the Euclidean distance of (L_c, L_h) from
    (0, 0), where both losses would be perfect: the larger loss weighs more, in proportion. A network that has learnt the background has a
    small classification loss and a large heatmap loss, and P then goes to 1; once its heatmap is clean, P falls and classification
    gains weight. No number is left to set by hand.

    Source: the method of the global criterion (Yu 1973, Management Science 19; Miettinen 1999, Nonlinear Multiobjective Optimization) with
    exponent 2 and ideal point 0; that the weights come from running means is ours.
    """

    def __init__(self) -> None:
        self.classification = 0.0
        self.heatmap = 0.0
        self.seen = False

    def share(self, start: float) -> float:
        """P of the next step, in [0, 1]; ``start`` before the first heatmap, and where both means are 0."""
        total = self.classification + self.heatmap
        return self.heatmap / total if self.seen and total > 0 else start

    def see(self, classification: float, heatmap: float) -> None:
        """Takes the losses of one step, means over the whole batch, >= 0."""
        if not self.seen:
            self.classification, self.heatmap, self.seen = classification, heatmap, True
            return
        self.classification += (1 - _DECAY) * (classification - self.classification)
        self.heatmap += (1 - _DECAY) * (heatmap - self.heatmap)

    def state(self) -> dict[str, Any]:
        """JSON values for :meth:`restore`; floats survive JSON exactly."""
        return {"classification": self.classification, "heatmap": self.heatmap, "seen": self.seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state."""
        self.classification, self.heatmap, self.seen = state["classification"], state["heatmap"], state["seen"]
