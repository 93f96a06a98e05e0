"""Paired tests between two classifiers on the same images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from scipy.stats import binomtest, permutation_test
from torch import Tensor

from isnet.scoring.evaluation import right_answers
from isnet.scoring.intervals import Score, clusters, interval
from isnet.scoring.scores import SCORES, Counts, answers_of, macro_auc

_SIGNS_AT_ONCE = 4_000_000  # in memory
_COMPARED = ("auc", "balanced_accuracy", "accuracy")


def mcnemar(right_a: Tensor, right_b: Tensor) -> float:
    """Two-sided p of McNemar's exact test: do two classifiers err equally often?

    Args:
        right_a, right_b: Whether each answered the same images correctly, bool [N].
    """
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
    return interval(lambda counts: b(counts) - a(counts), clusters(groups, images), resamples, level, seed)


def class_differences(
    logits_a: Tensor,
    logits_b: Tensor,
    labels: Tensor,
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Score]:
    """One-vs-rest AUC of b minus that of a, class by class or label by label; without those of which all images are, or none.

    Args:
        logits_a, logits_b, labels, groups, resamples, seed: As for :func:`compare`.
        names: Of the K classes or labels.
    """
    a, b = (answers_of(logits, labels) for logits in (logits_a, logits_b))
    found = {}
    for column, name in enumerate(names):
        truth = a.binary[:, [column]]
        if 0 < truth.sum() < len(truth):
            found[name] = paired_difference(
                partial(macro_auc, a.log_odds[:, [column]], truth),
                partial(macro_auc, b.log_odds[:, [column]], truth),
                len(labels),
                groups=groups,
                resamples=resamples,
                seed=seed,
            )
    return found


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
        ``{"auc_difference": Score, "balanced_accuracy_difference": Score, "accuracy_difference": Score, "right": {"both", "only_a",
        "only_b", "neither"}, "mcnemar_p": p}``, differences b - a. For several labels per image McNemar's test and the counts are of all
        decisions. Where groups are drawn, ``"sign_flips_p"`` replaces McNemar's p.
    """
    right_a, right_b = (right_answers(logits, labels) for logits in (logits_a, logits_b))
    answers_a, answers_b = (answers_of(logits, labels) for logits in (logits_a, logits_b))
    images = len(labels)
    found: dict[str, Any] = {
        f"{name}_difference": paired_difference(
            partial(SCORES[name].value, answers_a),
            partial(SCORES[name].value, answers_b),
            images,
            groups=groups,
            resamples=resamples,
            seed=seed,
        )
        for name in _COMPARED
    }
    found["right"] = {
        "both": int((right_a & right_b).sum()),
        "only_a": int((right_a & ~right_b).sum()),
        "only_b": int((right_b & ~right_a).sum()),
        "neither": int((~right_a & ~right_b).sum()),
    }
    drawn = clusters(groups, images)
    if len(np.unique(drawn)) < images:
        return {**found, "sign_flips_p": sign_flips(right_a, right_b, drawn, seed=seed)}
    return {**found, "mcnemar_p": mcnemar(right_a.flatten(), right_b.flatten())}
