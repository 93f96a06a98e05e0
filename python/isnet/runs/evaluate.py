"""Scoring a run on its tests."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset, Subset

from isnet._files import write_json
from isnet.data import Example
from isnet.runs.data import RunData, require_tests, run_data
from isnet.runs.folder import EVALUATION_NAME, Run
from isnet.scoring.evaluation import evaluate, masked_rows, predict, spread_rows
from isnet.scoring.intervals import as_json, classification_scores
from isnet.scoring.sensitivity import OtherBackground, bias_sensitivity, blind_spot
from isnet.training.log import LOG_NAME, read_log
from isnet.training.tracking import Tracking, flatten

_ATTENTION_IMAGES = 500


def evaluate_run(
    run: Run, data: RunData | None = None, *, resamples: int = 0, sensitivity: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Scores a run on its test sets and writes the scores into its folder.

    Args:
        run: The run.
        data: Its data sets, if already built.
        resamples: Of the bootstrap that gives the intervals; 0: none.
        sensitivity: Score with removed and swapped backgrounds, too.
        progress: Show progress on the terminal while data are fetched.

    Raises:
        ValueError: no test and no validation images.

    Returns:
        ``{"accuracy": {test: [0, 1]}, "background_attention": {test: [0, 1]}, "masks": {test: {"images", "missing", "looked_at"}},
        "dropped": [what was wrong with each image of the whole set that the mask policy ``"skip"`` left out],
        "scores": {test: {source or "": {score: {value, low, high}}}}, "sensitivity": {test: {change: ...}}}``, the last if requested; the
        accuracy is over all sources. ``looked_at``: the number of images in the mean of background attention. It and the sensitivity
        use images with masks; a test without any is left out there.
    """
    data = data or run_data(run, progress=progress)
    require_tests(data, run.folder)
    network, train = run.config.network, run.config.train
    # As many images at a time as in one part of a training step: more might not fit into memory.
    batch_size = max(1, train.batch_size // train.accumulate)
    answers = {name: predict(run.model, test, batch_size) for name, test in data.tests.items()}
    scores: dict[str, Any] = evaluate(
        run.model,
        data.tests,
        eps=network.eps,
        input_range=run.config.data.pixel_range,
        attention_images=_ATTENTION_IMAGES,
        batch_size=batch_size,
        answers=answers,
    )
    scores["dropped"] = list(data.dropped)
    scores["masks"] = {name: _masks(test) for name, test in data.tests.items()}
    scores["scores"] = {name: _by_source(*answers[name], test, resamples) for name, test in data.tests.items()}
    if sensitivity:
        changes = {name: _sensitivity(run, test, answers[name], batch_size) for name, test in data.tests.items()}
        scores["sensitivity"] = {name: found for name, found in changes.items() if found}
    write_json(run.folder / EVALUATION_NAME, scores)
    return scores


def _masks(dataset: Dataset[Example]) -> dict[str, int]:
    images, masked = len(cast(Sized, dataset)), masked_rows(dataset)
    return {
        "images": images,
        "missing": images - len(masked),
        "looked_at": len(spread_rows(masked, _ATTENTION_IMAGES)),
    }


def _sensitivity(
    run: Run, test: Dataset[Example], answers: tuple[Tensor, Tensor], batch_size: int
) -> dict[str, dict[str, Any]]:
    """Bias sensitivity and blind spot, per change of the background."""
    network, pixel_range = run.config.network, run.config.data.pixel_range
    found = bias_sensitivity(run.model, test, pixel_range, batch_size=batch_size, answers=answers)
    spots = {
        change: blind_spot(
            run.model,
            Subset(test, masked_rows(test)),
            OtherBackground(test, change, pixel_range),
            eps=network.eps,
            input_range=pixel_range,
            batch_size=batch_size,
        )
        for change in found
    }
    return {change: {**of._asdict(), "blind_spot": spots[change]._asdict()} for change, of in found.items()}


def _by_source(logits: Tensor, labels: Tensor, dataset: Dataset[Example], resamples: int) -> dict[str, Any]:
    """Scores of all images ("") and, if there are several, of each source."""
    sources = getattr(dataset, "sources", [""] * len(labels))
    groups = getattr(dataset, "groups", [""] * len(labels))

    def scores(rows: list[int]) -> dict[str, Any]:
        ours = [groups[row] for row in rows]
        return as_json(classification_scores(logits[rows], labels[rows], groups=ours, resamples=resamples))

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
    config = run.config
    tracking = Tracking(config.files.loggers, run.folder, flatten(config.identity()))
    if config.files.loggers:
        tracking.start(read_log(run.folder / LOG_NAME), resumed=True)
        tracking.scores(found)
        tracking.close("finished")
