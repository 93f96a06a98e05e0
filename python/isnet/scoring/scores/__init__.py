"""Scores of a classifier: one class in one file for each, entered in one table; evaluation, intervals and tables take all of it."""

from isnet.scoring.scores.accuracy import Accuracy
from isnet.scoring.scores.auc import MacroAUC, macro_auc
from isnet.scoring.scores.balanced_accuracy import BalancedAccuracy
from isnet.scoring.scores.base import Answers, ClassificationScore, Counts, FloatArray, answers_of
from isnet.scoring.scores.macro_f1 import MacroF1

# By their names in evaluation.json, in the order of tables; the first two are the headline.
SCORES: dict[str, ClassificationScore] = {
    "auc": MacroAUC(),
    "balanced_accuracy": BalancedAccuracy(),
    "accuracy": Accuracy(),
    "macro_f1": MacroF1(),
}

__all__ = ["SCORES", "Answers", "ClassificationScore", "Counts", "FloatArray", "answers_of", "macro_auc"]
