"""The table of experiment 1: means over seeds, from the cells' results."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

TESTS = ("biased", "unbiased", "deceiving")


def rows_of(found: Sequence[Mapping[str, Any]], marks: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over the seeds, per mark and method; cost: processor time over that of the standard network.

    Args:
        found: The results of the cells, as their files hold them.
        marks: In the order of the table.
    """
    rows = []
    for mark in marks:
        plain = _mean(found, "standard", mark, _cost)
        for name in dict.fromkeys(result["method"] for result in found if result["mark"] == mark):
            row: dict[str, Any] = {"mark": mark, "method": name}
            for test in TESTS:
                row[test] = _mean(found, name, mark, partial(_percent, test))
            row["background"] = _mean(found, name, mark, lambda result: 100 * result["background"])
            for key in ("distance", "score"):
                row[key] = _mean(found, name, mark, partial(_spot, key))
            cost = _mean(found, name, mark, _cost)
            row["cost"] = None if plain is None or cost is None else cost[0] / plain[0]
            rows.append(row)
    return rows


def _cost(result: Mapping[str, Any]) -> float:
    return result["cpu_seconds"] / result["steps"]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown, mean ± standard deviation in per cent."""
    lines = [
        "| mark | method | biased | unbiased | deceiving | background relevance | decisions moved | blind spot | cost |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        cells = [_cell(row[key]) for key in (*TESTS, "background", "distance", "score")]
        cost = "-" if row["cost"] is None else f"{row['cost']:.2f}"
        lines.append(f"| {row['mark']} | {row['method']} | {' | '.join(cells)} | {cost} |")
    return "\n".join(lines) + "\n"


def _cell(score: tuple[float, float] | None) -> str:
    return "-" if score is None else f"{score[0]:.1f} ± {score[1]:.1f}" if score[1] else f"{score[0]:.1f}"


def _mean(
    results: Sequence[Mapping[str, Any]], method: str, mark: str, value: Callable[[Mapping[str, Any]], float]
) -> tuple[float, float] | None:
    values = [value(result) for result in results if result["method"] == method and result["mark"] == mark]
    if not values:
        return None
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _percent(test: str, result: Mapping[str, Any]) -> float:
    return 100 * float(result["accuracy"][test])


def _spot(key: str, result: Mapping[str, Any]) -> float:
    return 100 * float(result["blind_spot"][key])
