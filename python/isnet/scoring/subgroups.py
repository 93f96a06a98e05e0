"""Accuracy of each subgroup, images of one class from one source, and of the worst of them: what a shortcut learnt from the source costs.

Source: Sagawa, Koh, Hashimoto, Liang, Distributionally Robust Neural Networks, ICLR 2020, whose groups are pairs of class and spurious
attribute (bird and place). Here the attribute is the source of an image, and ``group`` keeps its meaning of images that belong together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from isnet.scoring.evaluation import right_answers
from isnet.scoring.intervals import as_json, mean_score

FEWEST = 10  # images of a subgroup that may be called the worst


class Subgroup(NamedTuple):
    """Which images: those of one class from one source; of several labels per image those that have a label, or lack it.

    Attributes:
        label: Index of the class, or of the label.
        source: Where they come from.
        present: Whether they have the label; None: classes.
    """

    label: int
    source: str
    present: bool | None = None

    def title(self, names: Sequence[str]) -> str:
        """For tables."""
        without = "without " if self.present is False else ""
        return f"{without}{names[self.label]}, {self.source or '(no source)'}"


def subgroups(labels: Tensor, sources: Sequence[str]) -> dict[Subgroup, list[int]]:
    """The rows of each subgroup that occurs, in the order of labels and sources.

    Args:
        labels: Classes [N], or 0/1 numbers [N, K] (then each image is in K subgroups).
        sources: Of each image.
    """
    found: dict[Subgroup, list[int]] = {}
    for row, (label, source) in enumerate(zip(labels.tolist(), sources, strict=True)):
        if labels.dim() == 1:
            found.setdefault(Subgroup(int(label), source), []).append(row)
            continue
        for column, value in enumerate(label):
            found.setdefault(Subgroup(column, source, value > 0), []).append(row)
    return dict(sorted(found.items()))


def subgroup_scores(
    logits: Tensor,
    labels: Tensor,
    sources: Sequence[str],
    names: Sequence[str],
    *,
    training: tuple[Tensor, Sequence[str]] | None = None,
    groups: Sequence[str] | None = None,
    resamples: int = 200,
) -> dict[str, Any] | None:
    """Accuracy by subgroup, the worst, and the average that weights subgroups as they occur in training.

    Args:
        logits: [N, K].
        labels: Classes [N], or 0/1 numbers [N, K]: a subgroup's accuracy is then that of its label's decisions.
        sources: Of each image.
        names: Of the classes, or labels.
        training: Labels and sources of the training images; None: unknown.
        groups, resamples: As for :func:`isnet.scoring.intervals.classification_scores`.

    Returns:
        ``{"worst": the entry of the subgroup with the lowest accuracy among those of at least ten images, or None,
        "average": accuracy weighted by the subgroups' numbers of training images, None if those have none of them,
        "all": [{"subgroup", "class", "source", "images", "trained_on": training images or None, "accuracy": {value, low, high}}]}``;
        None if all images are of one source.
    """
    if len(set(sources)) < 2:
        return None
    right = right_answers(logits, labels).double()
    seen: Counter[Subgroup] = Counter()
    if training is not None:
        seen.update({one: len(rows) for one, rows in subgroups(*training).items()})
    found: list[dict[str, Any]] = []
    for one, rows in subgroups(labels, sources).items():
        values = right[rows] if labels.dim() == 1 else right[rows, one.label]
        ours = None if groups is None else [groups[row] for row in rows]
        entry: dict[str, Any] = {
            "subgroup": one.title(names),
            "class": names[one.label],
            "source": one.source,
            "images": len(rows),
        }
        score = as_json({"accuracy": mean_score(values, groups=ours, resamples=resamples)})
        found.append({**entry, "trained_on": None if training is None else seen[one], **score})
    weights = [entry["trained_on"] or 0 for entry in found]
    weighted = sum(weight * entry["accuracy"]["value"] for weight, entry in zip(weights, found, strict=True))
    return {
        "worst": min(
            (entry for entry in found if entry["images"] >= FEWEST),
            key=lambda entry: entry["accuracy"]["value"],
            default=None,
        ),
        "average": weighted / sum(weights) if sum(weights) else None,
        "all": found,
    }


def subgroup_differences(
    logits_a: Tensor,
    logits_b: Tensor,
    labels: Tensor,
    sources: Sequence[str],
    names: Sequence[str],
    *,
    groups: Sequence[str] | None = None,
    resamples: int = 1000,
) -> dict[str, Any]:
    """Subgroup -> difference b - a of its accuracy, with its interval (:class:`isnet.scoring.intervals.Score`); {} of one source.

    Args:
        logits_a, logits_b: Of the two classifiers on the same images, [N, K].
        labels, sources, names, groups, resamples: As for :func:`subgroup_scores`.
    """
    if len(set(sources)) < 2:
        return {}
    change = right_answers(logits_b, labels).double() - right_answers(logits_a, labels).double()
    found = {}
    for one, rows in subgroups(labels, sources).items():
        values = change[rows] if labels.dim() == 1 else change[rows, one.label]
        ours = None if groups is None else [groups[row] for row in rows]
        found[one.title(names)] = mean_score(values, groups=ours, resamples=resamples)
    return found
