"""Curves as panels, one question each: scores and losses by epoch, and ROC curves."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from isnet.scoring.svg import ink, series_color, style

_SIZE = (5.0, 3.0)  # inches; at 72 pixels each, the width of a telephone
_LINES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_MARKED = 12  # markers along a curve
_NAME = 22  # characters of a label
_DECADES = 1.0  # a logarithmic axis spans at least as many
_APART = 0.075  # of the axis' height, between labels
_CURVES = 12  # ROC curves in a panel; of more, those with the lowest AUC

Log = Sequence[Mapping[str, Any]]
Points = list[tuple[float, float]]


class Panel(NamedTuple):
    """A figure and what it shows in words."""

    title: str
    figure: Figure
    finding: str


def training_panels(logs: Mapping[str, Log], kept: Mapping[str, int] | None = None) -> list[Panel]:
    """Scores on the validation images and losses against the epoch; no panel without a curve.

    Args:
        logs: Network name -> its log, as :func:`isnet.training.fit` returns it.
        kept: Network name -> the epoch that it kept, which is ringed.
    """
    epochs = {name: [entry for entry in log if entry.get("kind") == "epoch"] for name, log in logs.items()}
    steps = {name: [entry for entry in log if entry.get("kind") == "step"] for name, log in logs.items()}
    sets = list(dict.fromkeys(s for log in epochs.values() for entry in log for s in entry.get("accuracy", ())))
    panels = []
    for key, title in (("auc", "AUC"), ("balanced_accuracy", "balanced accuracy")):
        for name in sets:
            curves = {
                run: _points(log, lambda e, k=key, n=name: (e.get(k) or {}).get(n)) for run, log in epochs.items()
            }
            panels.append(_panel(f"{title}, {name}", curves, kept, share=True))
    validation = (
        ("classification", "classification loss, validation"),
        ("heatmap", "heatmap loss, validation"),
        ("background", "relevance in the background, validation"),
    )
    for key, title in validation:
        curves = {run: _points(log, lambda e, k=key: (e.get("validation") or {}).get(k)) for run, log in epochs.items()}
        panels.append(_panel(title, curves, kept, share=key == "background"))
    training = (
        ("classification", "classification loss, training"),
        ("heatmap", "heatmap loss, training"),
        ("grad_norm", "gradient norm before clipping"),
    )
    for key, title in training:
        panels.append(_panel(title, {run: _points(log, lambda e, k=key: e.get(k)) for run, log in steps.items()}, None))
    return [panel for panel in panels if panel is not None]


def roc_panel(
    curves: Mapping[str, Mapping[str, Sequence[float]]], areas: Mapping[str, float], title: str
) -> Panel | None:
    """One-vs-rest ROC curves of the classes of one test; of many classes those with the lowest AUC. None without a curve.

    Args:
        curves: As :func:`isnet.scoring.decisions.roc_curves` returns them.
        areas: Class -> AUC.
        title: Whose they are.
    """
    shown = sorted(curves, key=lambda name: areas[name])[:_CURVES]
    if not shown:
        return None
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=ink(), linewidth=0.8, alpha=0.5)
        for number, name in enumerate(shown):
            curve = curves[name]
            axes.plot(
                curve["false_positive_rate"],
                curve["true_positive_rate"],
                color=series_color(number),
                linestyle=_LINES[number % len(_LINES)],
                linewidth=_width(number, len(shown)),
                label=f"{_short(name)} {areas[name]:.3f}".lstrip("_"),
            )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")
        figure.legend(loc="outside right center", frameon=False, fontsize=9, title="AUC", handlelength=2.6)
    low, high = shown[0], max(curves, key=lambda name: areas[name])
    told = f"AUC from {areas[low]:.3f} (“{low}”) to {areas[high]:.3f} (“{high}”)"
    told = f"AUC {areas[low]:.3f} for “{low}”" if low == high else told
    more = f"; the {len(shown)} lowest of {len(curves)} classes are drawn" if len(shown) < len(curves) else ""
    return Panel(title, figure, f"ROC curves of {title}: {told}{more}")


def _points(log: Log, value: Any) -> Points:
    """(epoch, value) where there is a finite one."""
    found = [(entry["epoch"], value(entry)) for entry in log]
    return [(epoch, float(number)) for epoch, number in found if number is not None and math.isfinite(number)]


def _panel(
    title: str, curves: Mapping[str, Points], kept: Mapping[str, int] | None, *, share: bool = False
) -> Panel | None:
    """A curve for each network that has points; None if none has, or all are 0: nothing was measured."""
    known = {name: points for name, points in curves.items() if points and (share or any(y for _, y in points))}
    if not known:
        return None
    with style():
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.subplots()
        for number, name in enumerate(curves):
            if name not in known:
                continue
            x, y = zip(*known[name], strict=True)
            axes.plot(
                x,
                y,
                color=series_color(number),
                linestyle=_LINES[number % len(_LINES)],
                marker=_MARKERS[number % len(_MARKERS)],
                markevery=max(1, len(x) // _MARKED),
                markersize=4,
                markerfacecolor="none" if number % 2 else series_color(number),
                linewidth=_width(number, len(curves)),
            )
            ringed = [(a, b) for a, b in known[name] if kept and a == kept.get(name)]
            if ringed:
                axes.plot(*zip(*ringed, strict=True), "o", color=series_color(number), markersize=10, fillstyle="none")
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        axes.grid(alpha=0.2)
        _scale(axes, [y for points in known.values() for _, y in points], share=share)
        _end_labels(axes, {name: known[name][-1] for name in known}, list(curves))
    return Panel(title, figure, f"{title[:1].upper()}{title[1:]} by epoch: {_ends(known)}")


def _width(number: int, count: int) -> float:
    """Of the n-th line, each thinner than the one that it may cover."""
    return 1.4 + 2.4 * (count - 1 - number) / max(1, count - 1)


def _scale(axes: Axes, values: Sequence[float], *, share: bool) -> None:
    """Shares from 0 to 1; other positive numbers on a logarithmic axis if they span a decade. Either has labelled ticks."""
    if share:
        axes.set_ylim(-0.03, 1.03)
        return
    if min(values) <= 0 or math.log10(max(values) / min(values)) < _DECADES:
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, min_n_ticks=3))
        if min(values) >= 0 and max(values) > min(values):
            axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        return
    axes.set_yscale("log")
    decades = math.log10(max(values) / min(values))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 3 else (1.0,), numticks=12))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _end_labels(axes: Axes, ends: Mapping[str, tuple[float, float]], order: Sequence[str]) -> None:
    """The name of each curve beside its last point, moved apart where they would overlap."""
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = {name: float(to_axes.transform(point)[1]) for name, point in ends.items()}
    placed = _apart(sorted(heights.values()))
    for name, height in zip(sorted(heights, key=lambda n: heights[n]), placed, strict=True):
        axes.annotate(
            _short(name),
            xy=(1.0, height),
            xycoords="axes fraction",
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=series_color(order.index(name)),
            fontsize=9,
            annotation_clip=False,
        )


def _apart(heights: Sequence[float]) -> list[float]:
    """Rising numbers moved so that neighbours are at least a line apart, around the places they had, in [0, 1] if there is room."""
    count = len(heights)
    apart = min(_APART, 1 / max(1, count - 1)) if count > 1 else _APART
    found = np.asarray(heights, dtype=float)
    for index in range(1, count):
        found[index] = max(found[index], found[index - 1] + apart)
    found -= max(0.0, float((found - np.asarray(heights)).mean()))
    found += max(0.0, -float(found[0]))
    for index in range(count - 1, -1, -1):
        found[index] = min(found[index], 1 - (count - 1 - index) * apart)
    return found.tolist()


def _ends(curves: Mapping[str, Points]) -> str:
    return "; ".join(f"{name} from {points[0][1]:.3g} to {points[-1][1]:.3g}" for name, points in curves.items())


def _short(name: str) -> str:
    """A name that fits beside a curve, without characters that cannot be shown."""
    shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)
    return textwrap.shorten(shown, _NAME, placeholder="…") if len(shown) > _NAME and " " in shown else shown[:_NAME]
