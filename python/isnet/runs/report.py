"""One self-contained HTML page on several runs: what decides and what to beware of, then heatmaps, classes, curves and settings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
import torch
from markupsafe import Markup

from isnet._files import write_text
from isnet.config import RunConfig
from isnet.data.names import title_of_test
from isnet.runs.data import RunData, require_tests, run_data
from isnet.runs.folder import Run
from isnet.runs.gallery import picture_uri, shown_images
from isnet.runs.tables import (
    Row,
    all_tests,
    class_rows,
    confusion_rows,
    finding,
    fits_a_page,
    headline,
    mask_notes,
    most_confused,
    network_rows,
    score_rows,
    score_table,
    sensitivity_table,
    subgroup_rows,
    titled,
    warnings_of,
)
from isnet.scoring.curves import Panel, roc_panel, training_panels
from isnet.scoring.svg import inline_svg
from isnet.training.log import LOG_NAME, flatten, read_log

_FIRST = 4  # warnings that are shown at once


class Drawn(NamedTuple):
    """A figure in the page."""

    title: str
    svg: Markup


class OneTest(NamedTuple):
    """A run on a test, class by class.

    Attributes:
        title: Which.
        open: Whether it is shown at once.
        classes: Scores by class.
        subgroups: Accuracy by class and source, if there are several sources.
        matrix: The confusion matrix, if it fits.
        errors: The commonest, as sentences.
        roc: The curves.
    """

    title: str
    open: bool
    classes: list[dict[str, str]]
    subgroups: list[dict[str, str]]
    matrix: list[list[tuple[str, float]]] | None
    errors: list[str]
    roc: Drawn | None


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
    rows = score_rows(runs)
    tests = all_tests(rows)
    pictured = list(data.tests)[-1]
    several = runs[0].config.data.multi_label
    warnings = warnings_of(rows)
    page = _template().render(
        title=title,
        introduction=getattr(runs[0].config.data, "introduction", ""),
        notes=[*notes, *mask_notes(rows)],
        warnings=warnings[:_FIRST],
        more_warnings=warnings[_FIRST:],
        findings=[finding(row, pictured if pictured in row.scores else list(row.scores)[-1]) for row in rows],
        headline=headline(rows),
        scores=score_table(rows),
        sensitivity=sensitivity_table(rows),
        tiles=[
            {
                "caption": one.caption,
                "image": picture_uri(one.image, one.mask, relevance=False),
                "looks": [(look, picture_uri(look.heatmap, one.mask, relevance=True)) for look in one.looks],
            }
            for one in shown_images(runs, data.tests[pictured])
        ],
        by_class=[
            _one_test(row, test, number, is_open=test == pictured and len(rows) == 1)
            for number, (row, test) in enumerate((row, test) for row in rows for test in row.scores)
        ],
        curves=[_drawn(panel, f"curve-{number}") for number, panel in enumerate(_curves(rows, runs))],
        networks=network_rows(rows, runs),
        settings=[(title, _pairs(run.config)) for title, run in titled(runs).items()],
        pictured=title_of_test(pictured),
        several=several,
        explained="label with the highest logit" if several else "predicted class",
        looked_at=next((row.masks[tests[-1]]["looked_at"] for row in rows if tests[-1] in row.masks), None),
        last=title_of_test(tests[-1]),
        torch=torch.__version__,
    )
    write_text(path, page)


def _curves(rows: Sequence[Row], runs: Sequence[Run]) -> list[Panel]:
    logs = {
        row.title: read_log(run.home / LOG_NAME)
        for row, run in zip(rows, runs, strict=True)
        if (run.home / LOG_NAME).exists()
    }
    kept = {row.title: row.evaluation["kept"]["epoch"] for row in rows if row.evaluation.get("kept")}
    return training_panels(logs, kept)


def _drawn(panel: Panel, name: str) -> Drawn:
    return Drawn(panel.title, Markup(inline_svg(panel.figure, name, panel.finding)))  # its texts are escaped


def _one_test(row: Row, test: str, number: int, *, is_open: bool) -> OneTest:
    title, found = f"{row.title}, {title_of_test(test)}", row.evaluation
    areas = {one["class"]: one["auc"] for one in found["classes"][test] if one["auc"] is not None}
    curves = found["roc"].get(test, {})
    panel = roc_panel({name: curve for name, curve in curves.items() if name in areas}, areas, title)
    table = confusion_rows(row, test) if fits_a_page(row, test) else None
    return OneTest(
        title,
        is_open,
        class_rows(row, test),
        subgroup_rows(row, test),
        None if table is None else _shaded(table),
        [] if table else most_confused(row, test),
        None if panel is None else _drawn(panel, f"roc-{number}"),
    )


def _shaded(table: Sequence[dict[str, str]]) -> list[list[tuple[str, float]]]:
    """The cells of a confusion matrix, each with its share of the true class; first the class and 0, in the first row the titles."""
    rows = [[(title, 0.0) for title in table[0]]]
    for line in table:
        name, *counts = line.values()
        total = sum(int(count) for count in counts)
        rows.append([(name, 0.0), *((count, int(count) / total if total else 0.0) for count in counts)])
    return rows


def _pairs(config: RunConfig) -> list[tuple[str, str]]:
    """The settings; C1 and C2 that were measured are told beside the network."""
    flat = flatten(config.to_json())
    measured = ("loss.c1", "loss.c2") if config.is_isnet and config.loss.is_measured else ()
    return [(name, "measured, see above" if name in measured else str(value)) for name, value in flat.items()]


def _template() -> jinja2.Template:
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("isnet.runs", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return pages.get_template("report.html.jinja")
