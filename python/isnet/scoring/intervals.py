"""Scores with bootstrap intervals over images, or over groups of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isnet.scoring.scores import SCORES, Counts, answers_of

_FEWEST_GROUPS = 10


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
    """Every score of :data:`isnet.scoring.scores.SCORES`, with its interval.

    Args:
        logits: [N, K].
        labels: int64 [N], or 0/1 numbers [N, K] for several labels per image (accuracy is then over all decisions).
        groups: Of each image (for example its patient; ``""``: it is alone), as for :func:`clusters`; None: images are independent.
        resamples: Of the bootstrap over images or groups (percentiles); 0: no intervals (they are NaN).
        level: Of the intervals.
        seed: Of the resampling.

    Returns:
        Name -> score.
    """
    answers = answers_of(logits, labels)
    drawn = clusters(groups, len(labels))
    return {
        name: interval(partial(score.value, answers), drawn, resamples, level, seed) for name, score in SCORES.items()
    }


def mean_score(
    values: Tensor,
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 200,
    level: float = 0.95,
    seed: int = 0,
) -> Score:
    """Mean of one number per image, with its interval; NaN without any.

    Args:
        values: [N]; NaN: the image does not count.
        groups, resamples, level, seed: As for :func:`classification_scores`.
    """
    known = ~torch.isnan(values)
    if not known.any():
        return Score(math.nan, math.nan, math.nan)
    found = values[known].double().numpy()
    ours = None if groups is None else [group for group, kept in zip(groups, known.tolist(), strict=True) if kept]
    drawn = clusters(ours, len(found))
    return interval(lambda counts: float(np.average(found, weights=counts)), drawn, resamples, level, seed)


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


def as_json(scores: Mapping[str, Score]) -> dict[str, dict[str, float | None]]:
    """Scores as JSON values; NaN becomes None."""
    return {
        name: {key: None if math.isnan(value) else value for key, value in score._asdict().items()}
        for name, score in scores.items()
    }


def interval(score: Callable[[Counts], float], drawn: Counts, resamples: int, level: float, seed: int) -> Score:
    """Value of a score and its percentile interval; ``drawn`` as :func:`clusters` returns it."""
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
