"""Balanced accuracy."""

from __future__ import annotations

import math

import numpy as np
from sklearn import metrics

from isnet.scoring.scores.base import Answers, ClassificationScore, Counts, Decisions


class BalancedAccuracy(ClassificationScore):
    """Mean recall of the classes that occur; of several labels per image, the mean of each label's sensitivity and specificity.

    Always answering one of two classes gives 0.5, whatever their sizes. Labels that all images have, or none, are left out.
    """

    title = "balanced accuracy"

    def value(self, answers: Answers, counts: Counts) -> float:
        if answers.truth.ndim == 1:
            return _mean_recall(answers.truth, answers.given, counts)
        found = [
            _mean_recall(truth, given, counts)
            for truth, given in zip(answers.truth.T, answers.given.T, strict=True)
            if len(np.unique(truth[counts > 0])) == 2
        ]
        return float(np.mean(found)) if found else math.nan


def _mean_recall(truth: Decisions, given: Decisions, counts: Counts) -> float:
    present = np.unique(truth[counts > 0])
    return float(metrics.recall_score(truth, given, labels=present, average="macro", sample_weight=counts))
