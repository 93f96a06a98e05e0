"""One self-contained HTML page on several runs: accuracies, heatmaps and training curves."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Sequence
from typing import Any, cast

import jinja2
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from isnet._files import write_text
from isnet.config import RunConfig
from isnet.data import Example
from isnet.explanation import heatmaps
from isnet.runs.data import RunData, require_tests, run_data
from isnet.runs.folder import Run
from isnet.runs.tables import all_tests, mask_notes, score_cells, score_rows, score_table, titled
from isnet.scoring.evaluation import background_share, right_answers
from isnet.scoring.pictures import curves_figure, gallery_figure
from isnet.training.log import LOG_NAME, flatten, read_log


def one_per_class(labels: Tensor, count: int) -> list[int]:
    """Indices of ``count`` images: the first of each class, then the second of each, and so on.

    Args:
        labels: [N] classes, or [N, K] 0/1; each combination then counts as a class.
        count: How many, at most N.
    """
    classes = labels if labels.dim() == 1 else labels.unique(dim=0, return_inverse=True)[1]
    seen: dict[int, int] = {}
    turns = []
    for index, label in enumerate(classes.tolist()):
        turns.append((seen.get(label, 0), label, index))
        seen[label] = seen.get(label, 0) + 1
    return [index for _, _, index in sorted(turns)[:count]]


def gallery(runs: Sequence[Run], dataset: Dataset[Example], count: int = 8) -> Figure:
    """Heatmaps of the predicted class (of several labels, the one with the highest logit) for one image per class, a row for each run."""
    rows = one_per_class(cast(Any, dataset).labels, count)
    images, labels, masks = (torch.stack(parts) for parts in zip(*(dataset[row] for row in rows), strict=True))
    classes = runs[0].config.data.classes
    maps: dict[str, Tensor] = {}
    captions: dict[str, list[str]] = {}
    for title, run in titled(runs).items():
        device, config = next(run.model.parameters()).device, run.config
        logits, found = heatmaps(
            run.model, images.to(device), eps=config.network.eps, input_range=config.data.pixel_range
        )
        maps[title] = found.cpu()
        shares = background_share(maps[title], masks).tolist()
        logits = logits.cpu()
        right = right_answers(logits, labels).reshape(len(labels), -1).all(1)
        captions[title] = [
            f"{'✓' if good else '✗'} says {answer_text(values, label, classes)}, "
            f"bg {'-' if math.isnan(share) else f'{100 * share:.0f} %'}"
            for values, label, good, share in zip(logits, labels, right.tolist(), shares, strict=True)
        ]
    marks = getattr(dataset, "marks", None)
    told = [""] * len(rows)
    if marks is not None:
        told = [", no mark" if mark < 0 else f", mark of {mark}" for mark in marks[rows].tolist()]
    names = [label_text(label, classes) for label in labels]
    low, high = (torch.as_tensor(end).float().reshape(-1, 1, 1) for end in runs[0].config.data.pixel_range)
    shown = (images - low) / (high - low)
    return gallery_figure(
        shown, masks, maps, captions, image_captions=[n + t for n, t in zip(names, told, strict=True)]
    )


def label_text(label: Tensor, classes: Sequence[str]) -> str:
    """The name of a class, or the names of the labels that an image has."""
    if label.dim() == 0:
        return classes[int(label)]
    return ", ".join(name for name, value in zip(classes, label.tolist(), strict=True) if value) or "none"


def answer_text(logits: Tensor, label: Tensor, classes: Sequence[str]) -> str:
    """The answer to an image, as :func:`label_text`: the class with the highest logit, or the labels with logits above 0.

    Args:
        logits: [K].
        label: What is true, a class [] or 0/1 numbers [K], whose kind the answer has.
        classes: Their names.
    """
    return label_text((logits > 0).long() if label.dim() else logits.argmax(), classes)


def write_report(
    path: str | os.PathLike[str],
    runs: Sequence[Run],
    data: RunData | None = None,
    *,
    title: str = "ISNet",
    notes: Sequence[str] = (),
) -> None:
    """Writes the page to ``path``, atomically. It needs no other file and no network.

    Args:
        path: The HTML file.
        runs: The runs, in the order of the table. The pictures use the first one's data, whose classes and image size all must have.
        data: The first run's data, if already built.
        title: Heading.
        notes: Paragraphs below the table.

    Raises:
        ValueError: no runs, one of other classes or image sizes than the first, or one without test and validation images.
    """
    if not runs:
        raise ValueError("runs: expected at least one")
    for run in runs[1:]:
        for what, name in (("classes", "classes"), ("images of shape", "image_shape")):
            ours, first = (getattr(of.config.data, name) for of in (run, runs[0]))
            if ours != first:
                raise ValueError(f"runs: {run.folder} has {what} {ours}, {runs[0].folder} {first}: report them apart")
    data = data or run_data(runs[0])
    require_tests(data, runs[0].folder)
    logs = {
        title: read_log(run.folder / LOG_NAME, required=("epoch",))
        for title, run in titled(runs).items()
        if (run.folder / LOG_NAME).exists()
    }
    rows = score_rows(runs)
    tests = all_tests(rows)
    pictured = list(data.tests)[-1]
    test_set = data.tests[pictured]
    several = runs[0].config.data.multi_label
    page = _template().render(
        title=title,
        introduction=getattr(runs[0].config.data, "introduction", ""),
        notes=[*notes, *mask_notes(rows)],
        tests=tests,
        rows=[(row.title, score_cells(row, tests)) for row in rows],
        scores=score_table(rows),
        gallery=_png(gallery(runs, test_set)),
        curves=_png(curves_figure(logs)) if any(logs.values()) else None,
        settings=[(title, _pairs(run.config)) for title, run in titled(runs).items()],
        pictured=pictured,
        several=several,
        explained="label with the highest logit" if several else "predicted class",
        looked_at=next((row.masks[tests[-1]]["looked_at"] for row in rows if tests[-1] in row.masks), None),
        torch=torch.__version__,
    )
    write_text(path, page)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _pairs(config: RunConfig) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in flatten(config.to_json()).items()]


def _template() -> jinja2.Template:
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("isnet.runs", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("report.html.jinja")
