"""One self-contained HTML page on several runs: accuracies, heatmaps and training curves."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import jinja2
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import Dataset

from isnet._files import write_text
from isnet.evaluation import Example, background_share, heatmaps, right_answers
from isnet.pictures import curves_figure, gallery_figure
from isnet.run_config import DataConfig
from isnet.run_data import RunData, require_tests
from isnet.runlog import LOG_NAME, read_log
from isnet.runs import Run, evaluate_run, load_evaluation, run_data

_BIASED_MNIST = (
    "Every training image carries a mark in its background that tells the class. Accuracy is measured on the same test images "
    "three times: with the right mark (biased), without a mark (unbiased), and with the mark of another class (deceiving). A network "
    "that looks at the digit alone scores the same on all three."
)


class Row(NamedTuple):
    """The scores of one run, in percent.

    Attributes:
        title: Of the run.
        accuracy: Test -> score.
        background_attention: Test -> score, without tests for which it is undefined.
        scores: As :func:`isnet.runs.evaluate_run` returns them.
        masks: Likewise; empty for runs that were scored by an older version.
    """

    title: str
    accuracy: dict[str, float]
    background_attention: dict[str, float]
    scores: dict[str, Any]
    masks: Mapping[str, Mapping[str, int]] = MappingProxyType({})


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per run, from its stored scores; scores it first if there are none."""
    rows = []
    for title, run in titled(runs).items():
        scores = load_evaluation(run.folder) or evaluate_run(run)
        percent = {
            kind: {name: 100 * value for name, value in scores[kind].items()}
            for kind in ("accuracy", "background_attention")
        }
        rows.append(
            Row(
                title,
                percent["accuracy"],
                percent["background_attention"],
                scores.get("scores", {}),
                scores.get("masks", {}),
            )
        )
    return rows


def titled(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by title; those that share one are distinguished by their folders."""
    titles = [run.config.title for run in runs]
    return {
        title if titles.count(title) == 1 else f"{title} ({run.folder})": run
        for title, run in zip(titles, runs, strict=True)
    }


def all_tests(rows: Sequence[Row]) -> list[str]:
    """Names of the tests that any of the runs has."""
    return list(dict.fromkeys(test for row in rows for test in row.accuracy))


def score_cells(row: Row, tests: Sequence[str]) -> list[str]:
    """Accuracy on each test and share of relevance in the background on the last, as texts; a dash for missing values."""
    scores = [*(row.accuracy.get(test) for test in tests), row.background_attention.get(tests[-1])]
    return ["-" if score is None else f"{score:.1f} %" for score in scores]


def markdown_table(rows: Sequence[Row]) -> str:
    """Accuracies on the tests, and the share of relevance in the background on the last, as a Markdown table."""
    tests = all_tests(rows)
    lines = [
        f"| network | {' | '.join(f'{test} test' for test in tests)} | relevance in the background |",
        f"| --- |{' ---: |' * (len(tests) + 1)}",
    ]
    lines += [f"| {row.title} | {' | '.join(score_cells(row, tests))} |" for row in rows]
    return "\n".join(lines) + "\n"


def mask_notes(rows: Sequence[Row]) -> list[str]:
    """One sentence on each test that has images without masks."""
    found = {}
    for row in rows:
        for test, masks in row.masks.items():
            if masks["missing"]:
                found[test] = (
                    f"{test} test: {masks['missing']} of {masks['images']} images have no mask, or none of use; they count for all "
                    "scores but relevance in the background, bias sensitivity and blind spot."
                )
    return list(found.values())


def score_table(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Scores per network, test and source, as texts: ``{"network", "test", "source", "accuracy", "macro F1", "AUC"}``."""
    table = []
    for row in rows:
        for test, sources in row.scores.items():
            for source, found in sources.items():
                cells = {
                    name: _cell(found[key])
                    for name, key in (("accuracy", "accuracy"), ("macro F1", "macro_f1"), ("AUC", "auc"))
                }
                table.append({"network": row.title, "test": test, "source": source or "all", **cells})
    return table


def _cell(score: dict[str, float | None]) -> str:
    if score["value"] is None:
        return "-"
    interval = "" if score["low"] is None else f" ({score['low']:.3f} to {score['high']:.3f})"
    return f"{score['value']:.3f}{interval}"


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
        settings = run.config.heatmap
        device = next(run.model.parameters()).device
        logits, found = heatmaps(run.model, images.to(device), eps=settings.eps, input_range=settings.input_range)
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
        title: read_log(run.folder / LOG_NAME)
        for title, run in titled(runs).items()
        if (run.folder / LOG_NAME).exists()
    }
    rows = score_rows(runs)
    tests = all_tests(rows)
    pictured = list(data.tests)[-1]
    test_set = data.tests[pictured]
    several = runs[0].config.data.multi_label
    page = _TEMPLATE.render(
        title=title,
        introduction=_BIASED_MNIST if isinstance(runs[0].config.data, DataConfig) else "",
        notes=[*notes, *mask_notes(rows)],
        tests=tests,
        rows=[(row.title, score_cells(row, tests)) for row in rows],
        scores=score_table(rows),
        gallery=_png(gallery(runs, test_set)),
        curves=_png(curves_figure(logs)) if any(logs.values()) else None,
        settings=[(title, _flatten(run.config.to_json())) for title, run in titled(runs).items()],
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


def _flatten(values: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    pairs: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((prefix + key, str(value)))
    return pairs


_TEMPLATE = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
    """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 16px/1.5 system-ui, sans-serif; color: #1d232b; background: #fff; max-width: 68rem;
         margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.7rem; margin-bottom: .3rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
  table { border-collapse: collapse; } th, td { padding: .35rem .8rem; border-bottom: 1px solid #d8dee6; }
  td.number { text-align: right; font-variant-numeric: tabular-nums; } th { text-align: left; }
  th.number { text-align: right; }
  img { max-width: 100%; height: auto; } .scroll { overflow-x: auto; } .small { color: #57606a; font-size: .9rem; }
  details table { font-size: .85rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if introduction %}<p>{{ introduction }}</p>{% endif %}

<h2>Accuracy</h2>
<div class="scroll"><table>
<tr><th>network</th>{% for test in tests %}<th class="number">{{ test }}</th>{% endfor %}
<th class="number">relevance in the background</th></tr>
{% for row in rows %}
<tr><td>{{ row[0] }}</td>{% for cell in row[1] %}<td class="number">{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="small">Relevance in the background: share of absolute LRP relevance outside the foreground mask, for the
{{ explained }}, on {% if looked_at is not none %}{{ looked_at }} images of {% endif %}the {{ tests[-1] }} test.</p>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}

<h2>What the networks look at</h2>
<p>Images of the {{ pictured }} test and LRP heatmaps of the {{ explained }}: red speaks for it, blue against it, the green
outline is the foreground mask. Each heatmap has its own colour scale; bg is its share outside the mask.
{% if several %}An answer is right if it is so for every label.{% endif %}</p>
<img alt="Test images and, for each network, their heatmaps" src="{{ gallery }}">

{% if scores %}
<h2>Scores</h2>
<div class="scroll"><table>
<tr>{% for name in scores[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for line in scores %}<tr>{% for value in line.values() %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div>
<p class="small">In parentheses: 95 % bootstrap intervals over the images (over the groups of a manifest that has at least
ten), where they were asked for (isnet evaluate --resamples).</p>
{% endif %}

{% if curves %}
<h2>Training</h2>
<p>Epochs include the warm-up.</p>
<img alt="Accuracy and losses against the epoch" src="{{ curves }}">
{% endif %}

<h2>Settings</h2>
{% for name, pairs in settings %}
<details><summary>{{ name }}</summary>
<div class="scroll"><table>{% for key, value in pairs %}<tr><td>{{ key }}</td><td>{{ value }}</td></tr>{% endfor %}
</table></div></details>
{% endfor %}
<p class="small">PyTorch {{ torch }}</p>
</body>
</html>
"""
)
