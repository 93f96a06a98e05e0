"""One image or one map on matplotlib axes: what every picture is made of, and what other programs' pictures can use."""

from __future__ import annotations

import functools
import importlib
import io
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import Array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

# Blue speaks against the class, white is zero, vermilion supports it: told apart with every kind of colour blindness, and in grey print
# both ends are dark and the middle is light.
_COLORS = ("#002f5f", "#0072b2", "#ffffff", "#d55e00", "#6b2200")
_OUTLINE = (("white", 2.2), ("black", 1.0))  # seen on light and dark ground
_DIMMED = 0.55  # of an image's contrast below relevance
_LABEL_WIDTH = 28


def matplotlib_module(name: str) -> Any:
    """A module of matplotlib.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; one line with the remedy.
    """
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise ModuleNotFoundError(
            "pictures need matplotlib, which is not installed: pip install matplotlib", name="matplotlib"
        ) from None


@functools.cache
def relevance_colors() -> Colormap:
    """The colour map of relevance: blue, white at zero, vermilion."""
    colors = matplotlib_module("colors")
    return colors.LinearSegmentedColormap.from_list("relevance", _COLORS, N=511)  # odd: zero has a colour of its own


def colors_named(cmap: Any) -> Colormap:
    """The colour map of a name, or the one given; None: :func:`relevance_colors`.

    Raises:
        ValueError: matplotlib knows no such name.
    """
    if cmap is None:
        return relevance_colors()
    if not isinstance(cmap, str):
        return cmap
    known = importlib.import_module("matplotlib").colormaps
    if cmap not in known:
        raise ValueError(
            f"cmap: matplotlib knows no {cmap!r}; diverging ones are RdBu_r, PuOr_r, coolwarm, vanimo; None is the default"
        )
    return known[cmap]


def draw_image(axes: Axes, image: Array, mask: Array | None = None) -> None:
    """Draws an image and the outline of its mask.

    Args:
        axes: to draw on; its ticks are removed.
        image: [1, H, W] (grey) or [3, H, W], in [0, 1].
        mask: [1, H, W] in [0, 1].
    """
    axes.imshow(_colored(image), interpolation="auto")
    _finish(axes, mask)


def draw_map(
    axes: Axes,
    relevance: Array,
    limit: float,
    *,
    image: Array | None = None,
    mask: Array | None = None,
    cmap: str | Colormap | None = None,
) -> Any:
    """Draws relevance on a scale from ``-limit`` to ``limit``, over the image if there is one.

    Args:
        axes: to draw on; its ticks are removed.
        relevance: [H, W], summed over channels.
        limit: where the colours end, > 0; larger values have the last colour.
        image: [1, H, W] or [3, H, W] in [0, 1], shown in pale grey below; relevance is the more opaque the larger it is.
        mask: [1, H, W] in [0, 1]; its outline is drawn.
        cmap: a diverging colour map or its name. None: :func:`relevance_colors`.

    Returns:
        What ``figure.colorbar`` takes.
    """
    colors = colors_named(cmap)
    norm = matplotlib_module("colors").Normalize(-limit, limit)
    if image is None:
        axes.imshow(relevance, cmap=colors, norm=norm, interpolation="auto")
    else:
        grey = _colored(image) @ np.array([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
        ground = (1 - _DIMMED * (1 - grey))[..., None]
        opacity = np.clip(np.abs(relevance) / limit, 0, 1)[..., None] ** 0.5  # weak relevance is seen as well
        axes.imshow(opacity * colors(norm(relevance))[..., :3] + (1 - opacity) * ground, interpolation="auto")
    _finish(axes, mask)
    return matplotlib_module("cm").ScalarMappable(norm, colors)


def new_figure(width: float, height: float, title: str) -> Figure:
    """An empty figure of this many inches, outside of pyplot's state; notebooks show it."""
    figure = matplotlib_module("figure").Figure(figsize=(width, height), layout="constrained")
    figure._repr_png_ = functools.partial(_png, figure)  # IPython asks for it; pyplot would have registered the type
    if title:
        figure.suptitle(title.replace("$", r"\$"), fontsize=11)
    return figure


def _png(figure: Figure) -> bytes:
    written = io.BytesIO()
    figure.savefig(written, format="png")
    return written.getvalue()


def label(text: str) -> str:
    """A text as it is, in lines, without matplotlib's reading of dollar signs as formulas."""
    return textwrap.fill(text, _LABEL_WIDTH).replace("$", r"\$")


def _colored(image: Array) -> Array:
    return np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)


def _finish(axes: Axes, mask: Array | None) -> None:
    if mask is not None and mask.min() < 0.5 <= mask.max() and min(mask.shape[1:]) > 1:
        for color, width in _OUTLINE:
            axes.contour(mask[0], levels=[0.5], colors=color, linewidths=width)
    axes.set_xticks([])
    axes.set_yticks([])
