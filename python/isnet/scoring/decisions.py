"""What a classifier's answers are, class by class: confusion matrix and ROC curves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn import metrics

from isnet.scoring.scores import Answers

_POINTS = 101  # of a stored curve


def confusion(answers: Answers) -> list[Any]:
    """How often each answer was given, [true][answered] for classes; for labels [label][[absent, said present], [missed, found]].

    Rows and columns follow the classes, those that do not occur included.
    """
    if answers.truth.ndim == 2:
        return metrics.multilabel_confusion_matrix(answers.truth, answers.given).tolist()
    classes = np.arange(answers.probabilities.shape[1])
    return metrics.confusion_matrix(answers.truth, answers.given, labels=classes).tolist()


def class_table(answers: Answers, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class, or label, its images, recall, precision, specificity and one-vs-rest AUC; None where a score is not defined.

    Returns:
        ``[{"class", "images", "recall", "precision", "specificity", "auc"}]`` in the order of ``names``.
    """
    binary, given = answers.binary, _one_hot(answers)
    rows = []
    for column, name in enumerate(names):
        truth, said = binary[:, column], given[:, column]
        (rejected, wrong), (missed, found) = metrics.confusion_matrix(truth, said, labels=[0, 1]).tolist()
        rows.append(
            {
                "class": name,
                "images": found + missed,
                "recall": _ratio(found, found + missed),
                "precision": _ratio(found, found + wrong),
                "specificity": _ratio(rejected, rejected + wrong),
                "auc": float(metrics.roc_auc_score(truth, answers.log_odds[:, column]))
                if 0 < truth.sum() < len(truth)
                else None,
            }
        )
    return rows


def roc_curves(answers: Answers, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """One-vs-rest ROC curve of each class or label of which there are images and others.

    Returns:
        Name -> ``{"false_positive_rate", "true_positive_rate"}``, at most 101 points each, from (0, 0) to (1, 1).
    """
    binary = answers.binary
    curves = {}
    for column, name in enumerate(names):
        truth = binary[:, column]
        if not 0 < truth.sum() < len(truth):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrong, right, _ = metrics.roc_curve(truth, answers.log_odds[:, column])
        kept = np.unique(np.linspace(0, len(wrong) - 1, _POINTS).round().astype(int))
        curves[name] = {
            "false_positive_rate": wrong[kept].round(4).tolist(),
            "true_positive_rate": right[kept].round(4).tolist(),
        }
    return curves


def _one_hot(answers: Answers) -> Any:
    if answers.given.ndim == 2:
        return answers.given
    return (answers.given[:, None] == np.arange(answers.probabilities.shape[1])).astype(np.int64)


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None
