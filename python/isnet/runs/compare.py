"""Two runs on the same test images: paired differences, in the order of the headline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from isnet.data import Example
from isnet.data.names import title_of_test
from isnet.runs.data import RunData, require_tests, run_data, same_images
from isnet.runs.evaluate import BACKGROUND, CHANGED, batch_size_of, changed_by, shares_of
from isnet.runs.folder import Run
from isnet.runs.tables import titles
from isnet.scoring.evaluation import predict
from isnet.scoring.intervals import Score, mean_score
from isnet.scoring.paired import class_differences, compare
from isnet.scoring.sensitivity import OtherBackground, possible_changes
from isnet.scoring.subgroups import subgroup_differences

_CLASSES = 12  # whose differences are told one by one, and subgroups


def compare_runs(a: Run, b: Run, *, resamples: int = 1000) -> dict[str, dict[str, Any]]:
    """Differences b - a on every test, with intervals over the images (or groups) that both answered.

    Args:
        a, b: The runs, whose tests must be the same.
        resamples: Of the bootstrap.

    Returns:
        Test -> what :func:`isnet.scoring.paired.compare` returns, and ``"background_difference"`` and ``"changed_by_swap_difference"``, of
        images with masks, ``"classes"``, from :func:`isnet.scoring.paired.class_differences`, and ``"subgroups"``, if there are several
        sources, from :func:`isnet.scoring.subgroups.subgroup_differences`.

    Raises:
        ValueError: no tests, others, or other labels.
    """
    data_a, data_b = (run_data(run) for run in (a, b))
    require_tests(data_a, a.folder)
    for test in data_a.tests:
        if test not in data_b.tests or not same_images(data_a.tests[test], data_b.tests[test]):
            raise ValueError(
                f"{a.folder} and {b.folder} do not share the {title_of_test(test)}: their images are not the same"
            )
    return {test: _compared(a, b, data_a, data_b, test, resamples) for test in data_a.tests}


def _compared(a: Run, b: Run, data_a: RunData, data_b: RunData, test: str, resamples: int) -> dict[str, Any]:
    sets = data_a.tests[test], data_b.tests[test]
    (logits_a, labels), (logits_b, others) = (
        predict(run.model, images, batch_size_of(run)) for run, images in zip((a, b), sets, strict=True)
    )
    if not torch.equal(labels, others):
        raise ValueError(
            f"{a.folder} and {b.folder} do not share the {title_of_test(test)}: the labels are not the same"
        )
    options: dict[str, Any] = {"groups": getattr(sets[0], "groups", None), "resamples": resamples}
    found = compare(logits_a, logits_b, labels, **options)
    before, after = (shares_of(run, images) for run, images in zip((a, b), sets, strict=True))
    found[f"{BACKGROUND}_difference"] = mean_score(after - before, **options)
    if "swapped" in possible_changes(sets[0]) and "swapped" in possible_changes(sets[1]):
        changes = [
            _changes(run, images, (logits, labels))
            for run, images, logits in zip((a, b), sets, (logits_a, logits_b), strict=True)
        ]
        found[f"{CHANGED}_difference"] = mean_score(changes[1] - changes[0], **options)
    names = a.config.data.classes
    if labels.dim() == 2 or len(names) > 2:
        found["classes"] = class_differences(logits_a, logits_b, labels, names, **options)
    sources = getattr(sets[0], "sources", [""] * len(labels))
    if by_subgroup := subgroup_differences(logits_a, logits_b, labels, sources, names, **options):
        found["subgroups"] = by_subgroup
    return found


def _changes(run: Run, images: Dataset[Example], answers: tuple[Tensor, Tensor]) -> Tensor:
    """Share of decisions that swapped backgrounds change, per image, NaN without a mask."""
    swapped = OtherBackground(images, "swapped", run.config.data.pixel_range)
    return changed_by(answers, predict(run.model, swapped, batch_size_of(run))[0], images)


def comparison_lines(found: dict[str, dict[str, Any]], a: str, b: str) -> Iterator[str]:
    """What :func:`compare_runs` found, as lines.

    Args:
        found: By test.
        a, b: Names of the runs.
    """
    for test, differences in found.items():
        for key, title in titles().items():
            score = differences.get(f"{key}_difference")
            if score is not None:
                yield f"{title_of_test(test)}: {title} of {b} - {a} = {_difference(score, points=key in (BACKGROUND, CHANGED))}"
        right = differences["right"]
        only = f"by {a} only {right['only_a']}, by {b} only {right['only_b']}"
        counts = f"right by both {right['both']}, {only}, by neither {right['neither']}"
        if "mcnemar_p" in differences:
            yield f"{title_of_test(test)}: McNemar's p = {differences['mcnemar_p']:.3g} ({counts})"
        else:
            yield (
                f"{title_of_test(test)}: p = {differences['sign_flips_p']:.3g} (both exchanged at random in each group of images; {counts})"
            )
        for name, score in list(differences.get("classes", {}).items())[:_CLASSES]:
            yield f"{title_of_test(test)}: AUC of “{name}” against the rest, {b} - {a} = {_difference(score)}"
        for name, score in list(differences.get("subgroups", {}).items())[:_CLASSES]:
            yield f"{title_of_test(test)}: accuracy of “{name}”, {b} - {a} = {_difference(score)}"


def _difference(score: Score, *, points: bool = False) -> str:
    value, low, high = (number * (100 if points else 1) for number in score)
    if value != value:
        return "not defined"
    if points:
        return f"{value:+.1f} points ({low:+.1f} to {high:+.1f})"
    return f"{value:+.4f} ({low:+.4f} to {high:+.4f})"
