"""Pictures: heatmaps beside their images, and galleries."""

from __future__ import annotations

import io
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from isnet._text import figure_text

# Diverging, white at zero: red supports the explained class, blue speaks against it.
_HEATMAP_COLORS = "RdBu_r"
_MASK_COLOR = "#138d3f"
_TILE, _TILE_DPI = 1.6, 130  # longest side of a tile, in inches
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
    figure.suptitle(figure_text(title), fontsize=11)
    return figure


def save_heatmap(path: str | os.PathLike[str], image: Tensor, heatmap: Tensor, *, format: str = "png") -> None:
    """Image and heatmap side by side, pixel for pixel, without axes: many of them are written fast.

    Args:
        path: The file.
        image: [C, H, W] in [0, 1].
        heatmap: [C, H, W], as for :func:`explanation_figure`.
        format: Of the file, a name that Pillow knows.
    """
    left, relevance = _array(image).clip(0, 1), _array(heatmap).sum(0)
    left = left if len(left) == 3 else np.repeat(left.mean(0, keepdims=True), 3, 0)
    colors = matplotlib.colormaps[_HEATMAP_COLORS](0.5 + 0.5 * (relevance / _scale(relevance)).clip(-1, 1))
    both = np.concatenate([left.transpose(1, 2, 0), colors[..., :3]], 1)
    Image.fromarray(np.rint(255 * both).astype(np.uint8)).save(path, format=format)


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
            axes[0, column].set_xlabel(figure_text(image_captions[column]), fontsize=8)
        for row, (name, maps) in enumerate(heatmaps.items(), start=1):
            show_heatmap(axes[row, column], maps[column], masks[column])
            axes[row, column].set_xlabel(figure_text(captions[name][column]), fontsize=8)
    for row, name in enumerate(("image", *heatmaps)):
        axes[row, 0].set_ylabel(figure_text(textwrap.fill(name, 18)), fontsize=10)
    return figure


def tile_png(picture: Tensor, mask: Tensor, *, relevance: bool) -> bytes:
    """One small picture without a frame, as PNG.

    Args:
        picture: An image [C, H, W] in [0, 1], or a heatmap.
        mask: [1, H, W], whose outline is drawn.
        relevance: Whether it is a heatmap.
    """
    height, width = picture.shape[1:]
    scale = _TILE / max(height, width)
    figure = Figure(figsize=(width * scale, height * scale))
    axes = figure.add_axes((0, 0, 1, 1))
    (show_heatmap if relevance else show_image)(axes, picture, mask)
    axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_TILE_DPI)
    return buffer.getvalue()


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
    limit = _scale(relevance)
    colors = axes.imshow(relevance, cmap=_HEATMAP_COLORS, vmin=-limit, vmax=limit, interpolation="nearest")
    _outline(axes, mask)
    _bare(axes)
    return colors


def _scale(relevance: FloatArray) -> float:
    """Where the colours of a heatmap [H, W] end."""
    return float(np.quantile(np.abs(relevance), _QUANTILE)) or float(np.abs(relevance).max()) or 1.0


def _array(tensor: Tensor) -> FloatArray:
    return tensor.detach().float().cpu().numpy()


def _outline(axes: Axes, mask: Tensor | None) -> None:
    if mask is not None and bool(mask.any()):
        axes.contour(_array(mask)[0], levels=[0.5], colors=_MASK_COLOR, linewidths=0.9)


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
