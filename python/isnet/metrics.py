"""Scores with confidence intervals, and paired tests between two classifiers on the same images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn import metrics
from torch import Tensor

from isnet.evaluation import right_answers

FloatArray = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]
_FEWEST_GROUPS = 10
_SIGNS_AT_ONCE = 4_000_000  # in memory


class Score(NamedTuple):
    """A score in [0, 1] and its bootstrap interval; NaN where it is not defined (an AUC of one class)."""

    value: float
    low: float
    high: float


def classification_scores(
    logits: Tensor,
    labels: Tensor,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Score]:
    """Accuracy, macro-averaged F1 and macro-averaged area under the ROC curve (one class against the rest).

    Args:
        logits: [N, K].
        labels: int64 [N], or 0/1 numbers [N, K] for several labels per image (accuracy is then over all decisions).
        groups: Of each image (for example its patient; ``""``: it is alone), as for :func:`clusters`; None: images are independent.
        resamples: Of the bootstrap over images or groups (percentiles); 0: no intervals (they are NaN).
        level: Of the intervals.
        seed: Of the resampling.

    Returns:
        ``{"accuracy", "macro_f1", "auc"}``.
    """
    probabilities, truth = _probabilities(logits, labels), labels.cpu().numpy()
    answers = (logits > 0).long().numpy() if labels.dim() == 2 else logits.argmax(1).numpy()
    right = right_answers(logits, labels).double().numpy().reshape(len(truth), -1).mean(1)
    scores: dict[str, Callable[[Counts], float]] = {
        "accuracy": lambda counts: float(np.average(right, weights=counts)),
        "macro_f1": lambda counts: _macro_f1(truth, answers, counts),
        "auc": lambda counts: macro_auc(probabilities, truth, counts),
    }
    drawn = clusters(groups, len(truth))
    return {name: _interval(score, drawn, resamples, level, seed) for name, score in scores.items()}


def clusters(groups: Sequence[str] | None, images: int) -> Counts:
    """The units that a bootstrap draws: each image's number, equal for the images of a group, which are drawn together.

    Fewer than ten groups give too few combinations: then the images are drawn, and an interval holds for these groups only.

    Args:
        groups: Of each image, ``""``: it is alone; None: all are.
        images: Their number.

    Returns:
        [images], numbers from 0 in the order in which groups appear.
    """
    alone = np.arange(images)
    if groups is None:
        return alone
    numbers: dict[Any, int] = {}
    found = np.array([numbers.setdefault(group or place, len(numbers)) for place, group in enumerate(groups)])
    return found if len(numbers) >= _FEWEST_GROUPS else alone


def macro_auc(probabilities: FloatArray, truth: npt.NDArray[Any], counts: Counts | None = None) -> float:
    """Mean of the classes' areas under the ROC curve; classes without positives or without negatives are left out.

    Args:
        probabilities: [N, K].
        truth: [N] classes or [N, K] 0/1.
        counts: How often each image counts, [N]; None: once.
    """
    counts = np.ones(len(truth), dtype=np.int64) if counts is None else counts
    binary = truth if truth.ndim == 2 else truth[:, None] == np.arange(probabilities.shape[1])
    columns = range(probabilities.shape[1])
    if truth.ndim == 1 and probabilities.shape[1] == 2:
        columns = range(1, 2)  # both classes have the same curve
    areas = []
    for column in columns:
        positive = binary[:, column].astype(bool)
        if counts[positive].sum() and counts[~positive].sum():
            areas.append(metrics.roc_auc_score(positive, probabilities[:, column], sample_weight=counts))
    return float(np.mean(areas)) if areas else math.nan


def mcnemar(right_a: Tensor, right_b: Tensor) -> float:
    """Two-sided p of McNemar's exact test: do two classifiers err equally often?

    Args:
        right_a, right_b: Whether each answered the same images correctly, bool [N].
    """
    from scipy.stats import binomtest

    only_a, only_b = int((right_a & ~right_b).sum()), int((right_b & ~right_a).sum())
    return float(binomtest(only_a, only_a + only_b).pvalue) if only_a + only_b else 1.0


def sign_flips(right_a: Tensor, right_b: Tensor, drawn: Counts, *, flips: int = 10000, seed: int = 0) -> float:
    """Two-sided p of a test like :func:`mcnemar`, for images in groups, whose errors are correlated.

    If both classifiers err equally often, they could be exchanged in any group: p is the share of such exchanges after which
    their numbers of right answers differ at least as much, of all exchanges or, where there are more than ``flips``, of random ones.

    Args:
        right_a, right_b: Whether each answered correctly, bool [N] or [N, K].
        drawn: The images' groups, as :func:`clusters` returns them.
        flips: Random exchanges.
        seed: Of these.
    """
    from scipy.stats import permutation_test

    difference = (right_a.long() - right_b.long()).reshape(len(drawn), -1).sum(1).numpy()
    per_group = np.bincount(drawn, weights=difference)
    per_group = per_group[per_group != 0]
    if not len(per_group):
        return 1.0
    tested = permutation_test(
        (per_group,),
        lambda flipped, axis: np.abs(flipped.sum(axis)),
        permutation_type="samples",  # of one sample: signs are flipped
        alternative="greater",
        n_resamples=flips,
        batch=max(1, _SIGNS_AT_ONCE // len(per_group)),
        random_state=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def paired_difference(
    a: Callable[[Counts], float],
    b: Callable[[Counts], float],
    images: int,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Score:
    """Score of b minus score of a, and its bootstrap interval, both on the same resamples.

    Args:
        a, b: Functions from how often each image counts, int64 [images], to a score.
        images: Number of images.
        groups, resamples, level, seed: As for :func:`classification_scores`.
    """
    return _interval(lambda counts: b(counts) - a(counts), clusters(groups, images), resamples, level, seed)


def compare(
    logits_a: Tensor,
    logits_b: Tensor,
    labels: Tensor,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Paired comparison of two classifiers.

    Args:
        logits_a, logits_b: [N, K], of the same images in the same order.
        labels: [N], or 0/1 [N, K].
        groups: Of the images, as for :func:`classification_scores`.
        resamples, seed: Of the bootstrap.

    Returns:
        ``{"accuracy_difference": Score, "auc_difference": Score, "mcnemar_p": p}``, differences b - a. For several labels per image
        McNemar's test is over all decisions. Where groups are drawn, ``"sign_flips_p"`` replaces it.
    """
    right_a, right_b = (right_answers(logits, labels) for logits in (logits_a, logits_b))
    chances_a, chances_b = (_probabilities(logits, labels) for logits in (logits_a, logits_b))
    truth, images = labels.cpu().numpy(), len(labels)

    def accuracy(right: Tensor) -> Callable[[Counts], float]:
        mean = right.double().numpy().reshape(images, -1).mean(1)
        return lambda counts: float(np.average(mean, weights=counts))

    def auc(chances: FloatArray) -> Callable[[Counts], float]:
        return lambda counts: macro_auc(chances, truth, counts)

    pairs = {"accuracy": (accuracy(right_a), accuracy(right_b)), "auc": (auc(chances_a), auc(chances_b))}
    found: dict[str, Any] = {
        f"{name}_difference": paired_difference(*pair, images, groups=groups, resamples=resamples, seed=seed)
        for name, pair in pairs.items()
    }
    drawn = clusters(groups, images)
    if len(np.unique(drawn)) < images:
        return {**found, "sign_flips_p": sign_flips(right_a, right_b, drawn, seed=seed)}
    return {**found, "mcnemar_p": mcnemar(right_a.flatten(), right_b.flatten())}


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    """Scores as JSON values; NaN becomes None."""
    return {
        name: {key: None if math.isnan(value) else value for key, value in score._asdict().items()}
        for name, score in scores.items()
    }


def _probabilities(logits: Tensor, labels: Tensor) -> FloatArray:
    logits = logits.double().cpu()
    return (torch.sigmoid(logits) if labels.dim() == 2 else torch.softmax(logits, 1)).numpy()


def _macro_f1(truth: npt.NDArray[Any], answers: npt.NDArray[Any], counts: Counts) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where no class is left
        # A class that neither occurs nor is predicted, as in some resamples, has no F1 (NaN), and the mean is over the others.
        return float(metrics.f1_score(truth, answers, average="macro", sample_weight=counts, zero_division=np.nan))


def _interval(score: Callable[[Counts], float], drawn: Counts, resamples: int, level: float, seed: int) -> Score:
    """Value and interval; ``drawn`` as :func:`clusters` returns it."""
    value, count = score(np.ones(len(drawn), dtype=np.int64)), int(drawn.max()) + 1
    # Not scipy.stats.bootstrap: one resample without a class (NaN) would give no interval, and it refuses single images.
    generator = np.random.default_rng(seed)
    draws = [
        score(np.bincount(generator.integers(count, size=count), minlength=count)[drawn]) for _ in range(resamples)
    ]
    found = [draw for draw in draws if not math.isnan(draw)]
    if not found:
        return Score(value, math.nan, math.nan)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Score(value, float(low), float(high))
