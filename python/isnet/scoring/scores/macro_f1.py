"""Macro-averaged F1."""

from __future__ import annotations

import warnings

import numpy as np
from sklearn import metrics

from isnet.scoring.scores.base import Answers, ClassificationScore, Counts


class MacroF1(ClassificationScore):
    """Mean of the classes' F1. A class that neither occurs nor is predicted, as in some resamples, is left out."""

    title = "macro F1"

    def value(self, answers: Answers, counts: Counts) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # where no class is left
            found = metrics.f1_score(
                answers.truth, answers.given, average="macro", sample_weight=counts, zero_division=np.nan
            )
            return float(found)
