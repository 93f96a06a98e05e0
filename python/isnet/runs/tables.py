"""Tables of the scores of runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from isnet.runs.evaluate import evaluate_run
from isnet.runs.folder import Run, load_evaluation
from isnet.scoring.scores import SCORES


class Row(NamedTuple):
    """The scores of one run, in percent.

    Attributes:
        title: Of the run.
        accuracy: Test -> score.
        background_attention: Test -> score, without tests for which it is undefined.
        scores: As :func:`isnet.runs.evaluate.evaluate_run` returns them.
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
    """Scores per network, test and source, as texts: ``{"network", "test", "source", score: ...}``."""
    table = []
    for row in rows:
        for test, sources in row.scores.items():
            for source, found in sources.items():
                cells = {score.title: _cell(found.get(key)) for key, score in SCORES.items()}
                table.append({"network": row.title, "test": test, "source": source or "all", **cells})
    return table


def _cell(score: dict[str, float | None] | None) -> str:
    if score is None or score["value"] is None:
        return "-"
    interval = "" if score["low"] is None else f" ({score['low']:.3f} to {score['high']:.3f})"
    return f"{score['value']:.3f}{interval}"
