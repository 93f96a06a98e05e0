"""Macro-averaged area under the ROC curve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from isnet.scoring.scores.base import Answers, ClassificationScore, Counts, FloatArray


class MacroAUC(ClassificationScore):
    """See :func:`macro_auc`."""

    title = "AUC"

    def value(self, answers: Answers, counts: Counts) -> float:
        return macro_auc(answers.log_odds, answers.truth, counts)


def macro_auc(ranking: FloatArray, truth: npt.NDArray[Any], counts: Counts | None = None) -> float:
    """Mean of the classes' areas under the ROC curve; classes without positives or without negatives are left out.

    Args:
        ranking: [N, K], larger for images that rather belong to a class: probabilities, or what rises with them.
        truth: [N] classes or [N, K] 0/1.
        counts: How often each image counts, [N]; None: once.
    """
    counts = np.ones(len(truth), dtype=np.int64) if counts is None else counts
    binary = truth if truth.ndim == 2 else truth[:, None] == np.arange(ranking.shape[1])
    columns = range(ranking.shape[1])
    if truth.ndim == 1 and ranking.shape[1] == 2:
        columns = range(1, 2)  # both classes have the same curve
    areas = []
    for column in columns:
        positive = binary[:, column].astype(bool)
        if counts[positive].sum() and counts[~positive].sum():
            areas.append(metrics.roc_auc_score(positive, ranking[:, column], sample_weight=counts))
    return float(np.mean(areas)) if areas else math.nan
