"""Pictures: heatmaps beside their images, galleries and training curves."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from torch import Tensor

# Diverging, white at zero: red supports the explained class, blue speaks against it.
_HEATMAP_COLORS = "RdBu_r"
_OVERLAY_COLORS = "bwr"  # full colour at both ends: the middle is transparent
_MASK_COLOR = "#138d3f"
_LEGEND_COLUMNS = 6
_QUANTILE = 0.998  # the colour scale ends here, so that single pixels do not wash out the rest

FloatArray = npt.NDArray[np.floating[Any]]


def explanation_figure(
    image: Tensor, heatmap: Tensor, mask: Tensor, *, title: str = "", background_share: float | None = None
) -> Figure:
    """Image, heatmap and foreground mask side by side.

    Args:
        image: [C, H, W] in [0, 1].
        heatmap: [C, H, W]; summed over channels. Red supports the explained class, blue speaks against it.
        mask: [1, H, W], 1 = foreground; its outline is drawn on image and heatmap. All 0: no mask.
        title: Above the picture.
        background_share: Share of absolute relevance outside the mask, written below the heatmap.
    """
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    axes = figure.subplots(1, 3)
    show_image(axes[0], image, mask)
    axes[0].set_title("image", fontsize=10)
    colors = show_heatmap(axes[1], heatmap, mask)
    axes[1].set_title("relevance", fontsize=10)
    if background_share is not None:
        axes[1].set_xlabel(f"{100 * background_share:.1f} % outside the mask", fontsize=9)
    axes[2].imshow(_array(mask)[0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _bare(axes[2])
    axes[2].set_title("foreground mask" if bool(mask.any()) else "no foreground mask", fontsize=10)
    figure.colorbar(colors, ax=axes[1], shrink=0.8)
    figure.suptitle(title, fontsize=11)
    return figure


def gallery_figure(
    images: Tensor,
    masks: Tensor,
    heatmaps: Mapping[str, Tensor],
    captions: Mapping[str, Sequence[str]],
    *,
    image_captions: Sequence[str] = (),
) -> Figure:
    """A row of images above one row of heatmaps per network.

    Args:
        images: [N, C, H, W] in [0, 1].
        masks: [N, 1, H, W], 1 = foreground; the outline is drawn.
        heatmaps: Network name -> [N, C, H, W].
        captions: Network name -> N short texts below the heatmaps.
        image_captions: N short texts below the images.
    """
    columns, rows = len(images), 1 + len(heatmaps)
    figure = Figure(figsize=(1.45 * columns + 1.2, 1.72 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for column in range(columns):
        show_image(axes[0, column], images[column], masks[column])
        if image_captions:
            axes[0, column].set_xlabel(image_captions[column], fontsize=8)
        for row, (name, maps) in enumerate(heatmaps.items(), start=1):
            show_heatmap(axes[row, column], maps[column], masks[column])
            axes[row, column].set_xlabel(captions[name][column], fontsize=8)
    for row, name in enumerate(("image", *heatmaps)):
        axes[row, 0].set_ylabel(textwrap.fill(name, 18), fontsize=10)
    return figure


def overlay_figure(
    images: Tensor, masks: Tensor, heatmaps: Tensor, image_captions: Sequence[str], captions: Sequence[str]
) -> Figure:
    """A row of images above the same images in grey under their heatmaps, the outlines of the masks on both.

    Args:
        images: [N, C, H, W] in [0, 1].
        masks: [N, 1, H, W], 1 = foreground.
        heatmaps: [N, C, H, W]; opaque where relevance is large.
        image_captions, captions: N short texts below images and heatmaps.
    """
    figure = Figure(figsize=(1.6 * len(images), 4.2), layout="constrained")
    axes = figure.subplots(2, len(images), squeeze=False)
    for column, (image, mask) in enumerate(zip(images, masks, strict=True)):
        show_image(axes[0, column], image, mask)
        show_image(axes[1, column], image.mean(0, keepdim=True))
        relevance = _array(heatmaps[column]).sum(0)
        limit = _limit(relevance)
        opacity = np.abs(relevance / limit).clip(0, 1) ** 0.5
        axes[1, column].imshow(
            relevance, cmap=_OVERLAY_COLORS, vmin=-limit, vmax=limit, alpha=opacity, interpolation="nearest"
        )
        _outline(axes[1, column], mask)
        for row, text in enumerate((image_captions[column], captions[column])):
            axes[row, column].set_xlabel(text, fontsize=8, parse_math=False)
    return figure


def figure_pixels(figure: Figure, dpi: int = 100) -> npt.NDArray[np.uint8]:
    """A figure as an image [H, W, 3]."""
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # names in scripts that matplotlib's font lacks
        canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3].copy()


def curves_figure(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Accuracy on the test sets and the losses against the epoch.

    Args:
        logs: Network name -> its log, as :func:`isnet.training.fit` returns it.
    """
    figure = Figure(figsize=(10.5, 2.6 + 2.6 * _has_losses(logs)), layout="constrained")
    tests = list(dict.fromkeys(test for log in logs.values() for entry in log for test in entry.get("accuracy", ())))
    grid = figure.subplots(1 + _has_losses(logs), max(3, len(tests)), squeeze=False)
    looks = {name: _look(number) for number, name in enumerate(logs)}
    for axes, test in zip(grid[0], tests, strict=False):
        for name, log in logs.items():
            points = [(e["epoch"], 100 * e["accuracy"][test]) for e in log if test in e.get("accuracy", ())]
            if points:
                axes.plot(*zip(*points, strict=True), marker=".", label=name, **looks[name])
        _label(axes, f"accuracy, {test} (%)")
        axes.set_ylim(-3, 103)
    if _has_losses(logs):
        for axes, key, label in (
            (grid[1, 0], "classification", "classification loss"),
            (grid[1, 1], "heatmap", "heatmap loss"),
            (grid[1, 2], "grad_norm", "gradient norm before clipping"),
        ):
            for name, log in logs.items():
                points = [(entry["epoch"], entry[key]) for entry in log if entry.get(key) is not None]
                if points:
                    axes.plot(*zip(*points, strict=True), linewidth=1, **looks[name])
            _label(axes, label)
            if any(
                max(line.get_ydata()) > 0 for line in axes.lines
            ):  # a network without relevance has no such gradient
                axes.set_yscale("log")
            axes.yaxis.set_minor_formatter(NullFormatter())
    shown = {label: line for axes in grid[0] for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = min(len(logs), _LEGEND_COLUMNS)
    figure.legend(
        list(shown.values()), list(shown), loc="outside upper center", ncols=columns, fontsize=9, frameon=False
    )
    return figure


def show_image(axes: Axes, image: Tensor, mask: Tensor | None = None) -> None:
    """Draws an image [C, H, W] in [0, 1], grey for one channel, with the outline of its mask [1, H, W]."""
    pixels = _array(image)
    if len(pixels) == 3:
        axes.imshow(pixels.transpose(1, 2, 0).clip(0, 1), interpolation="nearest")
    else:
        axes.imshow(pixels.mean(0), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    _outline(axes, mask)
    _bare(axes)


def show_heatmap(axes: Axes, heatmap: Tensor, mask: Tensor | None = None) -> Any:
    """Draws relevance [C, H, W], summed over channels, on a scale symmetric about zero; returns the mappable."""
    relevance = _array(heatmap).sum(0)
    limit = _limit(relevance)
    colors = axes.imshow(relevance, cmap=_HEATMAP_COLORS, vmin=-limit, vmax=limit, interpolation="nearest")
    _outline(axes, mask)
    _bare(axes)
    return colors


def _limit(relevance: FloatArray) -> float:
    """Where the colour scale of a heatmap ends."""
    return float(np.quantile(np.abs(relevance), _QUANTILE)) or float(np.abs(relevance).max()) or 1.0


def _look(number: int) -> dict[str, Any]:
    """Colour and line of the n-th network: ten colours, then the same with another line."""
    colors = matplotlib.colormaps["tab10"].colors  # type: ignore[attr-defined]
    return {"color": colors[number % 10], "linestyle": ("-", "--", ":", "-.")[number // 10 % 4]}


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().float().cpu().numpy()


def _outline(axes: Axes, mask: Tensor | None) -> None:
    if mask is not None and bool(mask.any()):
        axes.contour(_array(mask)[0], levels=[0.5], colors=_MASK_COLOR, linewidths=0.9)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def _label(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("epoch", fontsize=9)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)


def _has_losses(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> bool:
    return any(entry.get("classification") is not None for log in logs.values() for entry in log)
