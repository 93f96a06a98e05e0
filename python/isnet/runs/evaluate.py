"""Scoring a run on its tests."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from isnet._files import write_json
from isnet.data import Example
from isnet.data.names import title_of_test
from isnet.runs.data import RunData, require_tests, run_data
from isnet.runs.folder import EVALUATION_NAME, Run, load_evaluation
from isnet.scoring.cautions import cautions
from isnet.scoring.decisions import class_table, confusion, roc_curves
from isnet.scoring.evaluation import background_shares, masked_rows, predict, right_answers, spread_rows
from isnet.scoring.intervals import as_json, classification_scores, mean_score
from isnet.scoring.scores import answers_of
from isnet.scoring.sensitivity import (
    OtherBackground,
    answers_with_other_backgrounds,
    bias_sensitivity,
    blind_spot,
    changed_answers,
)
from isnet.scoring.subgroups import subgroup_scores
from isnet.training.kept import Kept, kept_epoch
from isnet.training.log import LOG_NAME, read_log
from isnet.training.tracking import Tracking, flatten

_ATTENTION_IMAGES = 500
_MATRIX_CLASSES = 100  # of a confusion matrix that is written
BACKGROUND, CHANGED = (
    "background",
    "changed_by_swap",
)  # scores of single images, beside those of isnet.scoring.scores.SCORES


def evaluate_run(
    run: Run, data: RunData | None = None, *, resamples: int = 200, sensitivity: bool = True, progress: bool = True
) -> dict[str, Any]:
    """Scores a run on its test sets and writes the scores into its folder.

    Args:
        run: The run.
        data: Its data sets, if already built.
        resamples: Of the bootstrap that gives the intervals; 0: none.
        sensitivity: Score with removed and swapped backgrounds, too.
        progress: Show progress on the terminal while data are fetched.

    Raises:
        ValueError: no test and no validation images, or answers that are not finite.

    Returns:
        ``{"kept": which epoch and why (:class:`isnet.training.kept.Kept`), "warnings": {test: [{"kind", "text"}]},
        "scores": {test: {source or "": {score: {value, low, high}}}}, "sensitivity": {test: {change: ...}},
        "subgroups": {test of several sources: :func:`isnet.scoring.subgroups.subgroup_scores`},
        "accuracy": {test: [0, 1]}, "background_attention": {test: [0, 1]}, "masks": {test: {"images", "missing", "looked_at"}},
        "classes": {test: [per class, see :func:`isnet.scoring.decisions.class_table`]}, "confusion": {test: matrix}, "roc": {test: curves},
        "dropped": [what was wrong with each image of the whole set that the mask policy ``"skip"`` left out]}``

        The scores are those of :data:`isnet.scoring.scores.SCORES`, ``"background"``, the share of relevance in the background, and, if
        sensitivity was requested, ``"changed_by_swap"``, the share of answers that swapped backgrounds change. ``looked_at``: the number of
        images in the mean of background attention. It and the sensitivity use images with masks; a test without any is left out there.
    """
    data = data or run_data(run, progress=progress)
    require_tests(data, run.folder)
    kept = kept_by(run)
    scores: dict[str, Any] = {
        "kept": None if kept is None else kept.to_json(),
        **{key: {} for key in _PER_TEST},
        "dropped": list(data.dropped),
    }
    if not sensitivity:
        del scores["sensitivity"]
    for name, test in data.tests.items():
        try:
            found = _test_scores(run, test, _trained_on(data), resamples, sensitivity)
        except ValueError as error:
            raise ValueError(f"{run.folder}, {title_of_test(name)}: {error}") from error
        for key, value in found.items():
            if value is not None:
                scores[key][name] = value
    write_json(run.folder / EVALUATION_NAME, scores)
    return scores


_PER_TEST = (
    *("warnings", "scores", "subgroups", "sensitivity", "accuracy", "background_attention", "masks"),
    *("classes", "confusion", "roc"),
)


def kept_by(run: Run) -> Kept | None:
    """Which epoch's weights the run has, and why; None without a log."""
    log = run.home / LOG_NAME
    return kept_epoch(read_log(log, required=("epoch",)), run.config.schedule.monitor) if log.exists() else None


def current_evaluation(run: Run) -> dict[str, Any]:
    """The stored scores of a run's weights; scores it if there are none, or those of other weights, as of a run trained further since."""
    stored, kept = load_evaluation(run.folder), kept_by(run)
    if stored is not None and (stored.get("kept") or {}).get("step") == (None if kept is None else kept.step):
        return stored
    return evaluate_run(run)


def batch_size_of(run: Run) -> int:
    """As many images at a time as in one part of a training step: more might not fit into memory."""
    return max(1, run.config.train.batch_size // run.config.train.accumulate)


def shares_of(run: Run, test: Dataset[Example]) -> Tensor:
    """Share of relevance in the background of each image that is looked at, NaN for the others, [N]."""
    rows = spread_rows(masked_rows(test), _ATTENTION_IMAGES)
    found = torch.full((len(cast(Sized, test)),), torch.nan)
    found[rows] = background_shares(
        run.model,
        test,
        rows,
        eps=run.config.network.eps,
        input_range=run.config.data.pixel_range,
        batch_size=batch_size_of(run),
    )
    return found


def moved_between(run: Run, before: Dataset[Example], after: Dataset[Example], **options: Any) -> dict[str, float]:
    """How far a run's probabilities move from one version of images to another, and how much of that its heatmaps hide.

    Args:
        run: What answers.
        before, after: The same images in the same order, with another background.
        options: ``max_images`` of :func:`isnet.scoring.sensitivity.blind_spot`, whose fields are returned.
    """
    config = run.config
    ranges: dict[str, Any] = {"eps": config.network.eps, "input_range": config.data.pixel_range}
    return blind_spot(run.model, before, after, **ranges, batch_size=batch_size_of(run), **options)._asdict()


def changed_by(answers: tuple[Tensor, Tensor], after: Tensor, test: Dataset[Example]) -> Tensor:
    """Share of decisions on each image that another background changes, NaN without a mask, [N].

    Args:
        answers: Logits and labels of all images.
        after: Logits of those with masks (:func:`isnet.scoring.sensitivity.answers_with_other_backgrounds`).
        test: The images.
    """
    logits, labels = answers
    rows = masked_rows(test)
    found = torch.full((len(labels),), torch.nan, dtype=torch.float64)
    found[rows] = changed_answers(logits[rows], after, labels[rows])
    return found


def _trained_on(data: RunData) -> tuple[Tensor, Sequence[str]] | None:
    """Labels and sources of the training images; None: unknown, as for a run on other images, which has tests alone."""
    if any(data.train is test for test in data.tests.values()) or not hasattr(data.train, "sources"):
        return None
    return cast(Any, data.train).labels, data.train.sources


def _test_scores(
    run: Run,
    test: Dataset[Example],
    trained_on: tuple[Tensor, Sequence[str]] | None,
    resamples: int,
    sensitivity: bool,
) -> dict[str, Any]:
    """What :func:`evaluate_run` returns of one test; None: not defined."""
    pixel_range, batch_size = run.config.data.pixel_range, batch_size_of(run)
    logits, labels = predict(run.model, test, batch_size)
    names = run.config.data.classes
    warnings = [caution._asdict() for caution in cautions(logits, labels, names)]
    answers = answers_of(logits, labels)
    per_image = {BACKGROUND: shares_of(run, test)}
    changes = None
    if sensitivity:
        after = answers_with_other_backgrounds(run.model, test, pixel_range, batch_size=batch_size)
        if "swapped" in after:
            per_image[CHANGED] = changed_by((logits, labels), after["swapped"], test)
        found = bias_sensitivity(run.model, test, pixel_range, answers=(logits, labels), after=after)
        changes = {change: {**of._asdict(), "blind_spot": _spot(run, test, change)} for change, of in found.items()}
    share = per_image[BACKGROUND].nanmean().item()
    return {
        "warnings": warnings,
        "scores": _by_source(logits, labels, per_image, test, resamples),
        "subgroups": subgroup_scores(
            logits,
            labels,
            getattr(test, "sources", [""] * len(labels)),
            names,
            training=trained_on,
            groups=getattr(test, "groups", None),
            resamples=resamples,
        ),
        "sensitivity": changes or None,
        "accuracy": right_answers(logits, labels).double().mean().item(),
        "background_attention": None if math.isnan(share) else share,
        "masks": _masks(test),
        "classes": class_table(answers, names),
        "confusion": confusion(answers) if len(names) <= _MATRIX_CLASSES else None,
        "roc": roc_curves(answers, names),
    }


def _masks(dataset: Dataset[Example]) -> dict[str, int]:
    images, masked = len(cast(Sized, dataset)), masked_rows(dataset)
    return {
        "images": images,
        "missing": images - len(masked),
        "looked_at": len(spread_rows(masked, _ATTENTION_IMAGES)),
    }


def _spot(run: Run, test: Dataset[Example], change: Any) -> dict[str, float]:
    """The blind spot of a change of the background."""
    other = OtherBackground(test, change, run.config.data.pixel_range)
    return moved_between(run, Subset(test, masked_rows(test)), other)


def _by_source(
    logits: Tensor, labels: Tensor, per_image: dict[str, Tensor], dataset: Dataset[Example], resamples: int
) -> dict[str, Any]:
    """Scores of all images ("") and, if there are several, of each source."""
    sources = getattr(dataset, "sources", [""] * len(labels))
    groups = getattr(dataset, "groups", [""] * len(labels))

    def scores(rows: Sequence[int]) -> dict[str, Any]:
        ours = [groups[row] for row in rows]
        found = classification_scores(logits[rows], labels[rows], groups=ours, resamples=resamples)
        found |= {
            name: mean_score(values[rows], groups=ours, resamples=resamples) for name, values in per_image.items()
        }
        return as_json(found)

    found = {"": scores(list(range(len(labels))))}
    for source in sorted(set(sources)) if len(set(sources)) > 1 else []:
        found[source] = scores([row for row, name in enumerate(sources) if name == source])
    return found


def log_scores(run: Run, scores: Mapping[str, Any]) -> None:
    """Passes the scores of a run on to its loggers.

    Args:
        run: The run, trained.
        scores: What :func:`evaluate_run` returned.

    Raises:
        ModuleNotFoundError: the package of a logger is missing.
        ValueError: the note on the loggers in the run's folder, or its log, is damaged.
    """
    found = {name: scores[name] for name in ("accuracy", "background_attention")}
    for test, sources in scores["scores"].items():
        for source, figures in sources.items():
            where = f"{test}.{source}" if source else test
            for name, figure in figures.items():
                found.setdefault(name, {}).setdefault(where, figure["value"])
    for test, subgroups in scores["subgroups"].items():
        if subgroups["worst"] is not None:
            found.setdefault("worst_subgroup", {})[test] = subgroups["worst"]["accuracy"]["value"]
    config = run.config
    tracking = Tracking(config.files.loggers, run.folder, flatten(config.identity()))
    if config.files.loggers:
        tracking.start(read_log(run.folder / LOG_NAME), resumed=True)
        tracking.scores(found)
        tracking.close("finished")
