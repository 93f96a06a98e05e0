"""zennit's pictures of arrays: ``imgify`` makes a Pillow image of one, ``imsave`` a file. Needs Pillow (``pip install Pillow``).

:func:`lrpkernels.show` draws heatmaps over images, with scales.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .cmap import ColorMap, LazyColorMapCache

if TYPE_CHECKING:
    from PIL.Image import Image

CMAPS = LazyColorMapCache(
    {
        "gray": "000,fff",
        "wred": "fff,f00",
        "wblue": "fff,00f",
        "hot": "000,f00,ff0,fff",
        "cold": "000,00f,0ff",
        "coldnhot": "0ff,00f,80:000,f00,ff0,fff",
        "bwr": "00f,80:fff,f00",
        "france": "0055a4,80:fff,ef4135",
        "seismic": "0000d0,80:d0d0d0,d00000",
        "coolio": "00d0d0,80:d0d0d0,d000d0",
        "coleus": "00d000,80:d0d0d0,d000d0",
    }
)
_COLOR_CHANNELS = (1, 3)


def get_cmap(cmap: str | ColorMap) -> ColorMap:
    """The color map of a name in ``CMAPS``, or of a text of :class:`.cmap.ColorMap`; a color map is returned as it is.

    Raises:
        ColorMapError: neither of them.
    """
    if isinstance(cmap, ColorMap):
        return cmap
    return CMAPS[cmap] if cmap in CMAPS else ColorMap(cmap)


def palette(cmap: str | ColorMap = "bwr", level: float = 1.0) -> NDArray[np.uint8]:
    """256 colors of a color map, uint8 [256, 3]; see :meth:`.cmap.ColorMap.palette`."""
    return get_cmap(cmap).palette(level)


def imgify(
    obj: Any,
    vmin: Any = None,
    vmax: Any = None,
    cmap: str | ColorMap = "bwr",
    level: float = 1.0,
    symmetric: bool = False,
    grid: bool | Sequence[int] = False,
    gridfill: Any = None,
) -> Image:
    """An array as a Pillow image: of a palette if it has one channel, else RGB.

    Args:
        obj: a tensor of any device and dtype, or what numpy takes: [H, W], or one or three channels ahead or behind, [C, H, W] or
            [H, W, C]. uint8 is shown as it is, all else from ``vmin`` to ``vmax``.
        vmin: what the color map's first color, or black, means. None: the smallest value; of several images, each one's own.
        vmax: likewise the last, and the largest.
        cmap: of one channel: a name in ``CMAPS``, a text of :class:`.cmap.ColorMap`, or one of these.
        level: of :meth:`.cmap.ColorMap.palette`.
        symmetric: where ``vmin`` and ``vmax`` are None, they are minus and plus the largest magnitude, so that 0 is the middle color.
        grid: ``obj`` has an axis of images ahead: True: as a grid nearly square; (rows, columns): as this one.
        gridfill: value of what is left empty. None: the smallest one.

    Returns:
        ``PIL.Image.Image``. A constant array has the first color, with ``symmetric`` the middle one.

    Raises:
        TypeError: other axes or channels; no real numbers.
        ValueError: no values, or NaN or infinite ones.
        ColorMapError: an unknown color map.
        ModuleNotFoundError: Pillow is not installed.

    Example:
        >>> imgify(relevance.sum(1), symmetric=True, cmap="coldnhot", grid=True)
    """
    array = _checked(obj)
    array = _channels_last(array, "obj", images=int(bool(grid)))
    if array.dtype != np.uint8:
        array = _as_bytes(array, vmin, vmax, symmetric, tuple(range(bool(grid), array.ndim)))
    if grid:
        array = gridify(array, None if grid is True else grid, gridfill)
    elif array.ndim == 2:
        array = array[..., None]
    make = _pillow().fromarray
    if array.shape[2] == 3:
        return make(np.ascontiguousarray(array))
    image = make(np.ascontiguousarray(array[..., 0]))
    image.putpalette(palette(cmap, level).tobytes())
    return image


def gridify(obj: Any, shape: Sequence[int] | None = None, fill_value: Any = None) -> NDArray[Any]:
    """Several images as one, side by side.

    Args:
        obj: [N, H, W], [N, C, H, W] or [N, H, W, C] of one or three channels.
        shape: (rows, columns); images beyond are left out. None: nearly square.
        fill_value: of what is left empty. None: the smallest value, of each channel.

    Returns:
        [rows * H, columns * W, C].

    Raises:
        TypeError: other axes or channels; a shape that is not two numbers.
        ValueError: no values.
    """
    array = _channels_last(_checked(obj), "obj", images=1)
    array = array[..., None] if array.ndim == 3 else array
    count, height, width, channels = array.shape
    rows, columns = _grid_shape(shape, count)
    filled = array.min((0, 1, 2)) if fill_value is None else np.asarray(fill_value).astype(array.dtype)
    tiles = np.empty((rows * columns, height, width, channels), array.dtype)
    tiles[:] = filled
    shown = array[: rows * columns]
    tiles[: len(shown)] = shown
    tiles = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return tiles.reshape(rows * height, columns * width, channels)


def imsave(
    fp: str | os.PathLike[str] | IO[bytes],
    obj: Any,
    vmin: Any = None,
    vmax: Any = None,
    cmap: str | ColorMap = "bwr",
    level: float = 1.0,
    grid: bool | Sequence[int] = False,
    format: str | None = None,
    writer_params: dict[str, Any] | None = None,
    symmetric: bool = False,
    gridfill: Any = None,
) -> None:
    """Writes an array as an image.

    Args:
        fp: path or open file; the suffix says how it is written, unless ``format`` does.
        obj, vmin, vmax, cmap, level, grid, symmetric, gridfill: see :func:`imgify`.
        format: name of one of Pillow's formats.
        writer_params: more arguments of ``PIL.Image.Image.save``.

    Raises:
        TypeError, ValueError, ModuleNotFoundError: see :func:`imgify`; ValueError for a format that Pillow does not write.
        FileNotFoundError: the folder does not exist.
    """
    image = imgify(obj, vmin, vmax, cmap, level, symmetric, grid, gridfill)
    kind = format or (Path(fp).suffix[1:] if isinstance(fp, (str, os.PathLike)) else "")
    if kind.upper() in ("JPG", "JPEG"):
        image = image.convert("RGB")  # which has no palettes
    image.save(fp, format=format, **(writer_params or {}))


def interval_norm_bounds(
    input: NDArray[Any], symmetric: bool = False, dim: tuple[int, ...] | None = None
) -> tuple[NDArray[Any], NDArray[Any]]:
    """The smallest and largest values, or minus and plus the largest magnitude, along dimensions that stay with one entry.

    Args:
        input: the array.
        symmetric: about 0.
        dim: the dimensions; None: all but the first.
    """
    dim = tuple(range(1, input.ndim)) if dim is None else dim
    if symmetric:
        most = np.abs(input).max(dim, keepdims=True)
        return -most, most
    return input.min(dim, keepdims=True), input.max(dim, keepdims=True)


def _checked(obj: Any) -> NDArray[Any]:
    """Real numbers, uint8 or floating-point; booleans and other integers as float64, of which differences do not wrap around."""
    if isinstance(obj, Tensor):
        dense = obj.detach().cpu().resolve_conj().resolve_neg()
        array = (dense.float() if dense.dtype == torch.bfloat16 else dense).numpy()
    else:
        array = np.asarray(obj)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"obj: an array of real numbers is expected, got one of {array.dtype}")
    if array.size == 0:
        raise ValueError(f"obj: an array of shape {array.shape} holds no values")
    if array.dtype.kind != "f":
        return array if array.dtype == np.uint8 else array.astype(np.float64)
    wrong = int((~np.isfinite(array)).sum())
    if wrong:
        raise ValueError(f"obj: {wrong} of its {array.size} values are NaN or infinite")
    return array


def _channels_last(array: NDArray[Any], name: str, images: int) -> NDArray[Any]:
    """Channels behind; ``images``: the number of axes ahead of an image's own."""
    ahead = "N, " * images
    if array.ndim not in (2 + images, 3 + images):
        raise TypeError(
            f"{name}: expected [{ahead}H, W], [{ahead}C, H, W] or [{ahead}H, W, C], got shape {array.shape}"
            + ("; sum over channels, and pass grid=True for several images" if not images else "")
        )
    if array.ndim == 2 + images or array.shape[-1] in _COLOR_CHANNELS:
        return array
    if array.shape[images] not in _COLOR_CHANNELS:
        raise TypeError(
            f"{name}: the first or last axis of an image must have 1 or 3 channels, got shape {array.shape}; sum over channels"
        )
    return np.moveaxis(array, images, -1)


def _as_bytes(array: NDArray[Any], vmin: Any, vmax: Any, symmetric: bool, dims: tuple[int, ...]) -> NDArray[np.uint8]:
    low, high = interval_norm_bounds(array, symmetric, dims)
    low, high = low if vmin is None else np.asarray(vmin), high if vmax is None else np.asarray(vmax)
    span = high - low
    flat = span == 0
    scaled = (array - low) / np.where(flat, np.ones_like(span), span)
    scaled = np.where(flat & symmetric, 0.5, scaled)
    return (scaled * 255).clip(0, 255).astype(np.uint8)


def _grid_shape(shape: Sequence[int] | None, count: int) -> tuple[int, int]:
    if shape is None:
        columns = int(count**0.5)
        return -(-count // columns), columns
    if len(tuple(shape)) != 2:
        raise TypeError(f"grid: expected True or (rows, columns), got {shape!r}")
    rows, columns = (int(size) for size in shape)
    if rows < 1 or columns < 1:
        raise ValueError(f"grid: rows and columns must be positive, got {shape!r}")
    return rows, columns


def _pillow() -> Any:
    try:
        from PIL import Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            "pictures need Pillow, which is not installed: pip install Pillow", name="PIL"
        ) from None
    return Image
