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
        if self.path == ("cost",):
            return _as_figure(result.cpu_seconds / result.steps if result.steps else None, self.scale)
        found = [_as_figure(value, self.scale) for value in _at(result.model_dump(), self.path)]
        if len(found) == 1:
            return found[0]
        return _as_figure(_mean([figure["value"] for figure in found]), 1.0)

    def text(self, groups: Sequence[Sequence[Result]], references: Sequence[Result]) -> str:
        """Mean ± standard deviation over several seeds, or the value of one, with its interval if it has one; a dash if any lacks it.

        Args:
            groups: The results of each seed: one, or several whose mean counts.
            references: Those of the method :attr:`relative_to`, in the same settings.
        """
        figures = [self.figure(result) for group in groups for result in group]
        means = [_mean([self.figure(result)["value"] for result in group]) for group in groups]
        values = [value for value in means if value is not None]
        if not values or len(values) < len(means):
            return "-"
        mean, spread = statistics.fmean(values), ""
        if self.relative_to:
            reference = _mean([self.figure(result)["value"] for result in references])
            return f"{mean / reference:.{self.digits}f}" if reference else "-"
        low, high = figures[0]["low"], figures[0]["high"]
        if len(values) > 1:
            spread = f" ± {statistics.stdev(values):.{self.digits}f}"
        elif len(figures) == 1 and low is not None and high is not None:
            spread = f" [{low:.{self.digits}f}, {high:.{self.digits}f}]"
        return f"{mean:.{self.digits}f}{spread}{self.unit}"


def table(results: Sequence[Result], columns: Sequence[Column], *, by_seed: bool = False, overall: str = "") -> str:
    """A row per setting and method, in their order, in Markdown; the number of seeds of each stands there.

    Args:
        results: At least one.
        columns: What to show.
        by_seed: A row for each seed by itself.
        overall: What to call the mean over the settings, of the methods that have the same seeds in all; empty: no such rows.
    """
    titles = ["setting", "method", "seed" if by_seed else "seeds", *(column.title for column in columns)]
    lines = [f"| {' | '.join(titles)} |", f"| --- | --- |{' ---: |' * (len(titles) - 2)}"]

    def add(setting: str, method: str, seeds: Sequence[int], ours: Sequence[Result], number: int) -> None:
        groups = [[result for result in ours if result.seed == seed] for seed in seeds]
        settings = {result.setting for result in ours}
        cells = []
        for column in columns:
            wanted = [r for r in results if r.method == column.relative_to and r.setting in settings]
            cells.append(column.text(groups, wanted))
        lines.append(f"| {setting} | {method} | {number} | {' | '.join(cells)} |")

    for setting, method in dict.fromkeys((r.setting, r.method) for r in results):
        ours = [r for r in results if (r.setting, r.method) == (setting, method)]
        seeds = [r.seed for r in ours]
        for part in [[seed] for seed in seeds] if by_seed else [seeds]:
            add(setting, method, part, ours, part[0] if by_seed else len(part))
    settings = {r.setting for r in results}
    for method in dict.fromkeys(r.method for r in results) if overall and len(settings) > 1 and not by_seed else ():
        ours = [r for r in results if r.method == method]
        seeds = list(dict.fromkeys(r.seed for r in ours))
        if len(ours) == len(settings) * len(seeds):
            add(overall, method, seeds, ours, len(seeds))
    return "\n".join(lines) + "\n"


def _mean(values: Sequence[float | None]) -> float | None:
    """None if any is missing, or all are."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known and len(known) == len(values) else None


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
