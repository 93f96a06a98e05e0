"""Heatmaps as figures: alone, over their images or beside them, in a grid of images and explanations."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lrpkernels.attribution import LRP
from lrpkernels.engine.target import Target
from lrpkernels.rules import Composite, EpsilonPlus, Rule, ZBox

from .arrays import Array, Maps, Shown, Statistics, bounds_of, images_of, limit_of, maps_of, masks_of
from .draw import colors_named, draw_image, draw_map, label, matplotlib_module, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Method = Literal["overlay", "map", "side"]
_MOST = 150  # axes of one figure, which takes about 20 s
_CELL = 2.5  # inches


def show(
    heatmap: Shown | Mapping[str, Shown],
    image: Shown | None = None,
    mask: Shown | None = None,
    *,
    method: Method | None = None,
    scale: Literal["each", "shared"] | float = "each",
    clip: float = 0.998,
    cmap: str | Colormap | None = None,
    pixels: tuple[float, float] | None = None,
    mean: Statistics | None = None,
    std: Statistics | None = None,
    labels: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
    columns: int = 4,
    title: str = "",
    colorbar: bool = True,
    dims: Literal[2, 3] = 2,
    slices: int | Sequence[int] = 5,
) -> Figure:
    """A figure of heatmaps, summed over channels: vermilion supports the explained class, blue speaks against it, white is zero.

    The figure is matplotlib's own and no part of pyplot's state: a notebook shows it, ``figure.savefig`` writes it, nothing needs to be
    closed.

    Args:
        heatmap: relevance, a tensor of any device and dtype or a numpy array: [H, W], [C, H, W], [N, C, H, W] or, of several targets,
            [N, T, C, H, W]; or {name: heatmap, ...}, of several rules or networks. Images are rows, explanations columns.
        image: what was explained, [C, H, W] or [N, C, H, W], one or three channels.
        mask: foreground, [H, W], [1, H, W], [N, H, W] or [N, 1, H, W] in [0, 1]; its outline is drawn, and the share of absolute
            relevance outside of it is written below each map.
        method: "overlay": relevance over the pale image; "map": relevance alone; "side": image and relevance side by side. None:
            "overlay" with an image, else "map".
        scale: "each": every map has a colour scale of its own, as its colour bar says; "shared": one for all of them, so that colours
            can be compared; a number: the relevance at which colours end.
        clip: the scale ends at this quantile of absolute relevance, in (0, 1], so that single pixels do not wash out the rest; the
            colour bar has pointed ends where values lie beyond. 1: at the maximum.
        cmap: a diverging colour map of matplotlib, or its name. None: :func:`lrpkernels.pictures.relevance_colors`.
        pixels: the image's values of black and white (after ``mean`` and ``std``). None: 0 and 255 for uint8, else 0 and 1.
        mean: of the normalisation that the image went through, x = (pixel - mean) / std: a number, or one for each channel.
        std: likewise.
        labels: texts of the N images.
        names: texts of the T targets.
        columns: of the grid of a batch with one explanation each.
        title: above everything.
        colorbar: draw the scales.
        dims: 3: volumes, [C, D, H, W] to [N, T, C, D, H, W], of which slices along D are shown as images.
        slices: of volumes: how many, evenly spaced, or which.

    Returns:
        ``matplotlib.figure.Figure``.

    Raises:
        TypeError, ValueError: an argument that does not fit, named; NaN or infinite values; images whose values are outside of
            ``pixels``.
        ModuleNotFoundError: matplotlib is not installed.

    Example:
        >>> logits, heatmap = lrp.LRP(model, lrp.EpsilonPlusFlat())(x, target=3)
        >>> lrp.show(heatmap, x, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    """
    maps = maps_of(heatmap, dims, names)
    images = None if image is None else images_of(image, maps, dims, pixels, mean, std)
    masks = None if mask is None else masks_of(mask, maps, dims)
    method = _method(method, images is not None)
    if not (isinstance(clip, (int, float)) and 0 < clip <= 1):
        raise ValueError(f"clip: expected a quantile in (0, 1], got {clip!r}")
    if not (isinstance(columns, int) and columns > 0):
        raise ValueError(f"columns: expected a positive whole number, got {columns!r}")
    texts = _labels(labels, len(maps.values))
    limits = _limits(maps.values.sum(2), scale, clip)
    if dims == 3:
        chosen = _slices(slices, maps.values.shape[3])
        texts = [f"{text} slice {index}".strip() for text in texts for index in chosen]
        maps = Maps(_sliced(maps.values, chosen, 3), maps.names)
        limits = limits.repeat(len(chosen), 0)  # one scale for a volume
        images = None if images is None else _sliced(images, chosen, 2)
        masks = None if masks is None else _sliced(masks, chosen, 2)
        columns = len(chosen)
    summed = maps.values.sum(2)  # [N, K, H, W]
    colors = colors_named(cmap)
    cells = _grid(maps, method, columns, images is not None)
    figure, axes = _figure(cells, summed.shape[2:], title)
    shared = scale != "each"
    used, mappable = [], None
    for at, (row, explanation) in zip(np.ndindex(axes.shape), cells.order, strict=True):
        cell: Axes = axes[at]
        if row is None:
            cell.set_axis_off()
            continue
        outline = None if masks is None else masks[row]
        used.append(cell)
        if explanation is None:
            assert images is not None
            draw_image(cell, images[row], outline)
        else:
            below = images[row] if method == "overlay" and images is not None else None
            limit = float(limits[row, explanation])
            map_ = summed[row, explanation]
            mappable = draw_map(cell, map_, limit, image=below, mask=outline, cmap=colors)
            if colorbar and not shared:
                _colorbar(figure, mappable, cell, np.abs(map_).max() > limit)
            if outline is not None:
                cell.set_xlabel(_share(maps.values[row, explanation], outline), fontsize=8)
        _caption(cell, at, cells, texts[row], maps.names[explanation] if explanation is not None else "image")
    if colorbar and shared and mappable is not None:
        _colorbar(figure, mappable, used, np.abs(summed).max() > limits.flat[0])
    return figure


def save(path: str | os.PathLike[str], heatmap: Any, *args: Any, dpi: int = 150, **options: Any) -> Path:
    """Writes a picture to a file.

    Args:
        path: its suffix says how: .png, .pdf, .svg, .jpg and others that matplotlib knows. Its folder must exist.
        heatmap: as for :func:`show`; or a figure, of :func:`show` or :func:`show_flow`.
        args: image and mask, as for :func:`show`.
        dpi: pixels per inch; a map is 2.5 inches wide.
        options: as for :func:`show`.

    Returns:
        The path.

    Raises:
        ValueError: a suffix that matplotlib does not write; otherwise as :func:`show`.
        FileNotFoundError: the folder does not exist.
    """
    target = Path(path)
    canvas = matplotlib_module("backend_bases").FigureCanvasBase
    known = canvas.get_supported_filetypes()
    if target.suffix.lower().lstrip(".") not in known:
        raise ValueError(
            f"path: {str(target)!r} ends in {target.suffix!r}, expected one of .{', .'.join(sorted(known))}"
        )
    if not target.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {str(target.parent)!r} does not exist")
    if isinstance(heatmap, matplotlib_module("figure").Figure):
        if args or options:
            raise ValueError("save: a figure is written as it is; leave the other arguments out")
        figure = heatmap
    else:
        figure = show(heatmap, *args, **options)
    figure.savefig(target, dpi=dpi)
    return target


def preset(low: float | Tensor, high: float | Tensor) -> Composite:
    """The rules of pictures: ``EpsilonPlus`` with the box rule at the input.

    Of the presets, its maps are among the smoothest and closest to the object. They say where, and little about which of several
    classes (docs/pictures.md has the measures). :class:`lrpkernels.LRP` itself has another default.

    Args:
        low: the smallest value of the model's input, a number or one for each channel, [C, 1, 1].
        high: the largest.
    """
    return EpsilonPlus(first=ZBox(low, high, 1e-6, bias=False))


def picture(
    model: nn.Module,
    x: Tensor,
    target: Target = None,
    *,
    composite: Composite | Rule | None = None,
    mask: Shown | None = None,
    **options: Any,
) -> Figure:
    """Explains a model's answers and shows the heatmaps over the images.

    Args:
        model: as for :class:`lrpkernels.LRP`, in evaluation mode.
        x: images [B, C, H, W] as the model takes them.
        target: as for :class:`lrpkernels.LRP`. None: the highest logit.
        composite: the rules. None: :func:`preset` for the range that ``pixels``, ``mean`` and ``std`` give the input.
        mask: as for :func:`show`.
        options: as for :func:`show`: ``pixels``, ``mean`` and ``std`` above all.

    Raises:
        TypeError, ValueError: as for :class:`lrpkernels.LRP` and :func:`show`; a model in training mode.
    """
    if isinstance(model, nn.Module) and model.training:
        raise ValueError(
            "model: it is in training mode, in which its answers and heatmaps are others; call model.eval() first"
        )
    if not (isinstance(x, Tensor) and x.dim() == 2 + options.get("dims", 2)):
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: expected images [B, C, H, W] (volumes [B, C, D, H, W] with dims=3), got {got}")
    if composite is None:
        composite = preset(*bounds_of(x, *(options.get(name) for name in ("pixels", "mean", "std"))))
    with torch.no_grad():
        _, heatmap = LRP(model, composite)(x, target)
    return show(heatmap, None if options.get("method") == "map" else x, mask, **options)


class _Cells:
    """Which image and explanation each of the figure's axes shows.

    Attributes:
        shape: rows and columns of axes.
        order: (image, explanation) of each, row by row; explanation None: the image itself; image None: nothing.
        table: rows are images and columns explanations; else each image stands for itself.
    """

    def __init__(self, shape: tuple[int, int], order: list[tuple[int | None, int | None]], table: bool) -> None:
        self.shape, self.order, self.table = shape, order, table


def _grid(maps: Maps, method: Method, columns: int, has_image: bool) -> _Cells:
    count, several = maps.values.shape[:2]
    leading: list[int | None] = (
        [None] if method == "side" or (several > 1 and has_image and method == "overlay") else []
    )
    unit: list[int | None] = [*leading, *range(several)]
    total = count * len(unit)
    if total > _MOST:
        raise ValueError(
            f"heatmap: {total} pictures in one figure, at most {_MOST}: show fewer images, as in heatmap[:8]"
        )
    table = several > 1
    across = 1 if table else min(count, max(1, columns // len(unit)))
    down = math.ceil(count / across)
    order: list[tuple[int | None, int | None]] = [(row, cell) for row in range(count) for cell in unit]
    order += [(None, None)] * ((down * across - count) * len(unit))
    return _Cells((down, across * len(unit)), order, table)


def _figure(cells: _Cells, size: tuple[int, ...], title: str) -> tuple[Figure, Any]:
    rows, columns = cells.shape
    height = _CELL * min(max(size[0] / size[1], 0.2), 5.0)
    figure = new_figure((_CELL + 0.6) * columns, (height + 0.45) * rows + 0.4 * bool(title), title)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _caption(cell: Axes, at: tuple[int, ...], cells: _Cells, text: str, name: str) -> None:
    if not cells.table:
        cell.set_title(label(text if name != "image" else text and f"{text}, image"), fontsize=9)
        return
    if at[0] == 0:
        cell.set_title(label(name), fontsize=9)
    if at[1] == 0:
        cell.set_ylabel(label(text), fontsize=9)


def _colorbar(figure: Figure, mappable: Any, axes: Any, beyond: bool) -> None:
    bar = figure.colorbar(mappable, ax=axes, shrink=0.85, extend="both" if beyond else "neither")
    bar.ax.tick_params(labelsize=7)
    bar.ax.yaxis.get_offset_text().set_fontsize(7)
    ticker = matplotlib_module("ticker")
    formatter = ticker.ScalarFormatter()
    formatter.set_powerlimits((-2, 3))
    bar.formatter = formatter
    bar.locator = ticker.MaxNLocator(5)
    bar.update_ticks()


def _share(relevance: Array, mask: Array) -> str:
    magnitude = np.abs(relevance)
    total = float(magnitude.sum())
    return f"{float((magnitude * (1 - mask)).sum()) / total:.1%} outside" if total > 0 else "no relevance"


def _method(method: Any, has_image: bool) -> Method:
    if method is None:
        return "overlay" if has_image else "map"
    if method not in ("overlay", "map", "side"):
        raise ValueError(f'method: expected "overlay", "map" or "side", got {method!r}')
    if method != "map" and not has_image:
        raise ValueError(f'method: {method!r} needs an image; "map" shows the heatmap alone')
    return method


def _labels(labels: Sequence[str] | None, count: int) -> list[str]:
    if labels is None:
        return [""] * count
    if isinstance(labels, str) or len(labels) != count:
        got = "one text" if isinstance(labels, str) else str(len(labels))
        raise ValueError(f"labels: {count} texts are expected, one for each image of heatmap, got {got}")
    return [str(text) for text in labels]


def _limits(summed: Array, scale: Any, clip: float) -> Array:
    if scale == "each":
        return np.array([[limit_of(map_, clip) for map_ in row] for row in summed])
    if scale == "shared":
        return np.full(summed.shape[:2], limit_of(summed, clip))
    if isinstance(scale, (int, float)) and not isinstance(scale, bool) and 0 < scale < math.inf:
        return np.full(summed.shape[:2], float(scale))
    raise ValueError(f'scale: expected "each", "shared" or a positive number, got {scale!r}')


def _slices(slices: Any, depth: int) -> list[int]:
    if isinstance(slices, int) and not isinstance(slices, bool) and slices > 0:
        if slices >= depth:
            return list(range(depth))
        return [int(index) for index in np.linspace(0, depth - 1, slices + 2)[1:-1].round()]
    chosen = list(slices) if isinstance(slices, Sequence) and not isinstance(slices, str) else []
    if not chosen or not all(isinstance(index, int) and -depth <= index < depth for index in chosen):
        raise ValueError(f"slices: expected a positive number, or indices below the depth {depth}, got {slices!r}")
    return [index % depth for index in chosen]


def _sliced(values: Array, chosen: list[int], axis: int) -> Array:
    """[N, ..., D, H, W] as [N * slices, ..., H, W]."""
    picked = np.moveaxis(values.take(chosen, axis), axis, 1)
    return picked.reshape(-1, *picked.shape[2:])
