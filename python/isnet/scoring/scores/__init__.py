"""Scores of a classifier: one class in one file for each, entered in one table; evaluation, intervals and tables take all of it."""

from isnet.scoring.scores.accuracy import Accuracy
from isnet.scoring.scores.auc import MacroAUC, macro_auc
from isnet.scoring.scores.base import Answers, ClassificationScore, Counts, FloatArray, answers_of
from isnet.scoring.scores.macro_f1 import MacroF1

# By their names in evaluation.json.
SCORES: dict[str, ClassificationScore] = {"accuracy": Accuracy(), "macro_f1": MacroF1(), "auc": MacroAUC()}

__all__ = ["SCORES", "Answers", "ClassificationScore", "Counts", "FloatArray", "answers_of", "macro_auc"]
