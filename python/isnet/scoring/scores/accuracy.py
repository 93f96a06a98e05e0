"""Accuracy."""

from __future__ import annotations

import numpy as np

from isnet.scoring.scores.base import Answers, ClassificationScore, Counts


class Accuracy(ClassificationScore):
    """Share of right answers; of several labels per image, over all decisions."""

    title = "accuracy"

    def value(self, answers: Answers, counts: Counts) -> float:
        return float(np.average(answers.right, weights=counts))
