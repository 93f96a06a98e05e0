"""One self-contained HTML page on several runs: accuracies, heatmaps and training curves."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import torch
from matplotlib.figure import Figure
from torch import Tensor

from isnet._files import write_text
from isnet.data import BiasedMNIST, BiasedMNISTSplits
from isnet.evaluation import background_share, heatmaps
from isnet.pictures import curves_figure, gallery_figure
from isnet.runlog import LOG_NAME, read_log
from isnet.runs import Run, evaluate_run, load_data, load_evaluation

TESTS = ("biased", "unbiased", "deceiving")


class Row(NamedTuple):
    """The scores of one run, in percent."""

    title: str
    accuracy: dict[str, float]
    background_attention: dict[str, float]


def score_rows(runs: Sequence[Run]) -> list[Row]:
    """One row per run, from its stored scores; scores it first if there are none."""
    rows = []
    for title, run in titled(runs).items():
        scores = load_evaluation(run.folder) or evaluate_run(run)
        percent = {kind: {name: 100 * value for name, value in scores[kind].items()} for kind in scores}
        rows.append(Row(title, percent["accuracy"], percent["background_attention"]))
    return rows


def titled(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by title; those that share one are told apart by their folders."""
    titles = [run.config.title for run in runs]
    return {
        title if titles.count(title) == 1 else f"{title} ({run.folder})": run
        for title, run in zip(titles, runs, strict=True)
    }


def markdown_table(rows: Sequence[Row]) -> str:
    """Accuracies on the three tests, and the share of relevance in the background, as a Markdown table."""
    lines = [
        "| network | biased test | unbiased test | deceiving test | relevance in the background |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [f"{row.accuracy[test]:.1f} %" for test in TESTS] + [f"{row.background_attention['deceiving']:.1f} %"]
        lines.append(f"| {row.title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def one_per_class(dataset: BiasedMNIST, count: int) -> list[int]:
    """Indices of the first images of the classes 0, 1, 2, ..., ``count`` in all."""
    order = torch.argsort(dataset.labels, stable=True)
    labels = dataset.labels[order]
    first = torch.cat([torch.ones(1, dtype=torch.bool), labels[1:] != labels[:-1]])
    return order[first][:count].tolist()


def gallery(runs: Sequence[Run], dataset: BiasedMNIST, count: int = 8) -> Figure:
    """Heatmaps of the predicted class for one image per class, a row for each run."""
    rows = one_per_class(dataset, count)
    images, labels, masks = dataset.images[rows], dataset.labels[rows], dataset.masks[rows]
    maps: dict[str, Tensor] = {}
    captions: dict[str, list[str]] = {}
    for title, run in titled(runs).items():
        settings = run.config.heatmap
        device = next(run.model.parameters()).device
        logits, found = heatmaps(run.model, images.to(device), eps=settings.eps, input_range=settings.input_range)
        maps[title] = found.cpu()
        shares = background_share(maps[title], masks).tolist()
        answers = logits.argmax(1).tolist()
        captions[title] = [
            f"{'✓' if answer == label else '✗'} says {answer}, bg {100 * share:.0f} %"
            for answer, label, share in zip(answers, labels.tolist(), shares, strict=True)
        ]
    marks = dataset.marks[rows].tolist()
    told = [
        f"{label}, no mark" if mark < 0 else f"{label}, mark of {mark}"
        for label, mark in zip(labels.tolist(), marks, strict=True)
    ]
    return gallery_figure(images, masks, maps, captions, image_captions=told)


def write_report(
    path: str | os.PathLike[str],
    runs: Sequence[Run],
    data: BiasedMNISTSplits | None = None,
    *,
    title: str = "ISNet on biased MNIST",
    notes: Sequence[str] = (),
) -> None:
    """Writes the page to ``path``, atomically. It needs no other file and no network.

    Args:
        path: The HTML file.
        runs: The runs, in the order of the table. The pictures use the first one's data.
        data: The first run's data, if already built.
        title: Heading.
        notes: Paragraphs below the table.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("runs: expected at least one")
    data = data or load_data(runs[0].config.data)
    logs = {
        title: read_log(run.folder / LOG_NAME)
        for title, run in titled(runs).items()
        if (run.folder / LOG_NAME).exists()
    }
    page = _TEMPLATE.render(
        title=title,
        notes=notes,
        tests=TESTS,
        rows=score_rows(runs),
        gallery=_png(gallery(runs, data.deceiving)),
        curves=_png(curves_figure(logs)) if any(logs.values()) else None,
        settings=[(title, _flatten(run.config.to_json())) for title, run in titled(runs).items()],
        images=len(data.deceiving),
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
<p>Every training image carries a mark in its background that tells the class. Accuracy is measured on
{{ images }} test images three times: with the right mark (biased), without a mark (unbiased), and with the mark of
another class (deceiving). A network that looks at the digit alone scores the same on all three.</p>

<h2>Accuracy</h2>
<div class="scroll"><table>
<tr><th>network</th>{% for test in tests %}<th class="number">{{ test }}</th>{% endfor %}
<th class="number">relevance in the background</th></tr>
{% for row in rows %}
<tr><td>{{ row.title }}</td>
{% for test in tests %}<td class="number">{{ "%.1f"|format(row.accuracy[test]) }} %</td>{% endfor %}
<td class="number">{{ "%.1f"|format(row.background_attention["deceiving"]) }} %</td></tr>
{% endfor %}
</table></div>
<p class="small">Relevance in the background: share of absolute LRP relevance outside the foreground mask, for the
predicted class, on the deceiving test.</p>
{% for note in notes %}<p>{{ note }}</p>
{% endfor %}

<h2>What the networks look at</h2>
<p>Images of the deceiving test and LRP heatmaps of the predicted class: red speaks for it, blue against it, the green
outline is the foreground mask. Each heatmap has its own colour scale; bg is its share outside the mask.</p>
<img alt="Test images and, for each network, their heatmaps" src="{{ gallery }}">

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
