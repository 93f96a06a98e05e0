"""What a reader must know before believing the scores: answers of one class, inverted rankings, tests that cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import mannwhitneyu
from torch import Tensor

from isnet.loss import classification_loss
from isnet.scoring.evaluation import prior_loss
from isnet.scoring.scores import Answers, answers_of

_FEW = 10  # images of a class, or of all others: an interval of AUC then spans tenths
_SURE = 0.01  # p below which a ranking counts as inverted, shared among the classes
_NAMED = 3
_CERTAIN = math.log(1e6)  # log-odds
_MANY = 0.5  # of the images


KINDS = (  # the gravest first
    *(
        "one answer",
        "inverted",
        "undefined",
        "never answered",
        "worse than the class shares",
        "no better than one answer",
    ),
    *("few images", "saturated"),
)


class Caution(NamedTuple):
    """A kind, of :data:`KINDS`, and a sentence."""

    kind: str
    text: str


def cautions(logits: Tensor, labels: Tensor, names: Sequence[str]) -> list[Caution]:
    """What makes the scores of these answers less, or other, than they seem; the gravest first, none if all is well.

    Args:
        logits: [N, K].
        labels: int64 [N], or 0/1 numbers [N, K] (several labels per image).
        names: K names of classes or labels.

    Raises:
        ValueError: logits that are not finite.
    """
    answers = answers_of(logits, labels)
    found = [
        *(_of_labels(answers, names) if answers.truth.ndim == 2 else _of_classes(answers, names)),
        *_inverted(answers, names),
        *_worse_than_shares(logits, labels),
        *_few(answers, names),
        *_saturated(answers),
    ]
    return sorted(found, key=lambda caution: KINDS.index(caution.kind))


def _of_classes(answers: Answers, names: Sequence[str]) -> Iterator[Caution]:
    """One class per image: those that do not occur, or are not answered."""
    present, said = np.unique(answers.truth), np.unique(answers.given)
    if len(present) == 1 < len(names):
        name = _quoted(names[present[0]])
        yield Caution(
            "undefined", f"all images are of class {name}: AUC is not defined, and balanced accuracy is the accuracy"
        )
        return
    absent = [name for k, name in enumerate(names) if k not in present]
    if absent:
        yield Caution("undefined", f"no images of {_listed(absent)}: left out of AUC and balanced accuracy")
    if len(said) == 1 < len(names):
        yield Caution(
            "one answer",
            f"all {len(answers.given)} answers are {_quoted(names[said[0]])}: the accuracy only tells how common that class is; whether "
            "the network tells the classes apart at all, the AUC says",
        )
        return
    silent = [names[k] for k in present if k not in said]
    if silent:
        yield Caution("never answered", f"never answered although there are such images: {_listed(silent)}")
    shares = np.bincount(answers.truth, minlength=len(names)) / len(answers.truth)
    accuracy = float(answers.right.mean())
    if len(present) > 1 and accuracy <= shares.max():
        yield Caution(
            "no better than one answer",
            f"accuracy, {100 * accuracy:.1f} %, is no better than always answering {_quoted(names[int(shares.argmax())])} "
            f"({100 * shares.max():.1f} %)",
        )


def _of_labels(answers: Answers, names: Sequence[str]) -> Iterator[Caution]:
    """Several labels per image: those that do not vary, in truth or in the answers."""
    varies = (answers.truth != answers.truth[0]).any(0)
    constant = [name for name, found in zip(names, varies, strict=True) if not found]
    if len(constant) == len(names):
        yield Caution(
            "undefined", "no label is both present and absent in this test: AUC and balanced accuracy are not defined"
        )
        return
    if constant:
        told = f"present in all images or in none: {_listed(constant)}; left out of AUC and balanced accuracy"
        yield Caution("undefined", told)
    decided = varies & (answers.given == answers.given[0]).all(0)
    kind = "one answer" if decided.sum() == varies.sum() else "never answered"
    for text, value in (("no image", 0), ("every image", 1)):
        stuck = [name for k, name in enumerate(names) if decided[k] and answers.given[0, k] == value]
        if stuck:
            yield Caution(
                kind, f"answered of {text}: {_listed(stuck)}; whether the network ranks images by it, its AUC says"
            )


def _inverted(answers: Answers, names: Sequence[str]) -> Iterator[Caution]:
    """Rankings that are clearly worse than chance, by the Mann-Whitney test of each class against the rest."""
    columns = [1] if answers.truth.ndim == 1 and len(names) == 2 else range(len(names))
    inverted = []
    for column in columns:
        truth, ranking = answers.binary[:, column].astype(bool), answers.log_odds[:, column]
        if truth.all() or not truth.any():
            continue
        tested = mannwhitneyu(ranking[truth], ranking[~truth], alternative="less")
        if tested.pvalue < _SURE / len(columns):
            area = tested.statistic / (truth.sum() * (~truth).sum())
            inverted.append(f"{_quoted(names[column])} {area:.2f}")
    if inverted:
        yield Caution(
            "inverted",
            f"AUC clearly below 0.5 ({_joined(inverted)}): the network ranks images the wrong way round; classes are exchanged, or it "
            "follows what speaks for another class here, such as a background",
        )


def _worse_than_shares(logits: Tensor, labels: Tensor) -> Iterator[Caution]:
    """A loss worse than that of an answer that does not look at the image."""
    loss, prior = float(classification_loss(logits, labels)), prior_loss(logits, labels)
    if 0 < prior < loss:
        yield Caution(
            "worse than the class shares",
            f"the classification loss, {loss:.3g}, is worse than that of answering with the shares of the classes, {prior:.3g}: the "
            "probabilities are overconfident or wrong",
        )


def _few(answers: Answers, names: Sequence[str]) -> Iterator[Caution]:
    """Tests too small to tell much."""
    counts = answers.binary.sum(0)
    if answers.truth.ndim == 2:
        counts = np.minimum(counts, len(answers.truth) - counts)
    few = [f"{_quoted(name)} {count}" for name, count in zip(names, counts.tolist(), strict=True) if 0 < count < _FEW]
    if few:
        told = f"few images to judge by ({_joined(few)} of {len(answers.truth)}): trust the intervals, not the values"
        yield Caution("few images", told)


def _saturated(answers: Answers) -> Iterator[Caution]:
    """Probabilities that are all 0 or 1."""
    certain = np.abs(answers.log_odds) > _CERTAIN
    share = float(certain.all(1).mean())
    if share >= _MANY:
        yield Caution(
            "saturated",
            f"{100 * share:.0f} % of the images have probabilities within a millionth of 0 or 1: they say nothing of how sure an answer is",
        )


def _quoted(name: str) -> str:
    return f"“{name}”"


def _listed(names: Sequence[str]) -> str:
    return _joined([_quoted(name) for name in names])


def _joined(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED + 1 else ""
    return ", ".join(texts[:_NAMED] if more else texts) + more
