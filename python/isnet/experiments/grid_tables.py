"""Tables of results: means over seeds, in Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from isnet.experiments.cells import Result


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: Its head.
        path: Where its value stands in a :class:`~isnet.experiments.cells.Result`: ``("scores", "biased", "accuracy")``; ``"*"`` stands for
            all names in that place, of whose values the mean is shown. ``("cost",)`` is the processor time of a step.
        scale: Factor, 100 for per cent.
        digits: After the point.
        unit: Behind the number.
        relative_to: A method over whose mean, in the same setting, the mean is shown, without a deviation.
    """

    title: str
    path: tuple[str, ...]
    scale: float = 1.0
    digits: int = 1
    unit: str = ""
    relative_to: str = ""

    def figure(self, result: Result) -> dict[str, float | None]:
        """``{"value", "low", "high"}`` of one cell, scaled; None where it has none."""
        place: Any = result.model_dump()
        if self.path == ("cost",):
            return _as_figure(result.cpu_seconds / result.steps if result.steps else None, self.scale)
        found = [_as_figure(value, self.scale) for value in _at(place, self.path)]
        if len(found) == 1:
            return found[0]
        values = [figure["value"] for figure in found if figure["value"] is not None]
        return _as_figure(statistics.fmean(values) if values and len(values) == len(found) else None, 1.0)

    def text(self, results: Sequence[Result], references: Sequence[Result]) -> str:
        """Mean ± standard deviation of the results of several seeds, or the value of one, with its interval if it has one; or a dash.

        Args:
            results: Of one setting and method.
            references: Of the same setting and the method :attr:`relative_to`.
        """
        figures = [self.figure(result) for result in results]
        values = [figure["value"] for figure in figures if figure["value"] is not None]
        if not values or len(values) < len(figures):
            return "-"
        if self.relative_to:
            others = [self.figure(result)["value"] for result in references]
            known = [value for value in others if value]
            return f"{statistics.fmean(values) / statistics.fmean(known):.{self.digits}f}" if known else "-"
        low, high = figures[0]["low"], figures[0]["high"]
        spread = ""
        if len(values) > 1:
            spread = f" ± {statistics.stdev(values):.{self.digits}f}"
        elif low is not None and high is not None:
            spread = f" [{low:.{self.digits}f}, {high:.{self.digits}f}]"
        return f"{statistics.fmean(values):.{self.digits}f}{spread}{self.unit}"


def table(results: Sequence[Result], columns: Sequence[Column], *, by_seed: bool = False) -> str:
    """A row per setting and method, in their order, in Markdown; the number of seeds of each stands there.

    Args:
        results: At least one.
        columns: What to show.
        by_seed: A row for each seed by itself.
    """
    titles = ["setting", "method", "seed" if by_seed else "seeds", *(column.title for column in columns)]
    lines = [f"| {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * (len(titles) - 2)}"]
    rows = {(r.setting, r.method, r.seed if by_seed else None): None for r in results}
    for setting, method, seed in rows:
        ours = [r for r in results if (r.setting, r.method) == (setting, method) and seed in (None, r.seed)]
        cells = []
        for column in columns:
            wanted = setting, column.relative_to
            cells.append(column.text(ours, [r for r in results if (r.setting, r.method) == wanted]))
        number = len(ours) if seed is None else seed
        lines.append(f"| {setting} | {method} | {number} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _at(place: Any, path: Sequence[str]) -> list[Any]:
    """The values at a path; none where it leads nowhere."""
    for index, name in enumerate(path):
        if not isinstance(place, dict):
            return []
        if name == "*":
            parts = [_at(part, path[index + 1 :]) for part in place.values()]
            return [value for part in parts for value in part or [None]]
        if name not in place:
            return []
        place = place[name]
    return [place]


def _as_figure(value: Any, scale: float) -> dict[str, float | None]:
    given = value if isinstance(value, dict) else {"value": value}
    numbers = {name: given.get(name) for name in ("value", "low", "high")}
    return {name: None if number is None else scale * number for name, number in numbers.items()}
