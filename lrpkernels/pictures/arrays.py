"""What is shown, checked and brought into one form: float64 arrays of maps, images and masks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[np.float64]
Shown = Tensor | npt.NDArray[Any]
Statistics = float | Sequence[float] | Tensor | npt.NDArray[Any]
_TOLERANCE = 0.01  # of the range of pixels: what resizing, bfloat16 and normalising there and back may add


@dataclass(frozen=True)
class Maps:
    """Heatmaps as a grid: one row for each image, one column for each explanation of it.

    Attributes:
        values: [N, K, C, H, W], or [N, K, C, D, H, W] of volumes.
        names: of the K explanations; empty texts where there is only one.
    """

    values: Array
    names: tuple[str, ...]


def array(name: str, given: Any) -> Array:
    """A tensor of any device and dtype, or what numpy takes, as float64.

    Raises:
        TypeError: neither a tensor nor an array of real numbers.
        ValueError: nothing in it, or NaN or infinite values.
    """
    if isinstance(given, Tensor):
        if given.is_complex() or given.layout is not torch.strided:
            raise TypeError(f"{name}: dense real numbers are expected, got a tensor of {given.dtype}, {given.layout}")
        found = given.detach().to(device="cpu", dtype=torch.float64).resolve_neg().numpy()
    else:
        found = np.asarray(given) if isinstance(given, (np.ndarray, list, tuple)) else np.asarray(None)
        if found.dtype.kind not in "biuf":
            raise TypeError(
                f"{name}: a torch.Tensor or numpy array of real numbers is expected, got {_kind(given, found)}"
            )
        found = found.astype(np.float64)
    if found.size == 0:
        raise ValueError(f"{name}: shape {found.shape} holds no values")
    wrong = int((~np.isfinite(found)).sum())
    if wrong:
        raise ValueError(f"{name}: {wrong} of its {found.size} values are NaN or infinite")
    return found


def _kind(given: Any, found: npt.NDArray[Any]) -> str:
    return f"an array of {found.dtype}" if isinstance(given, np.ndarray) else type(given).__name__


def maps_of(heatmap: Any, dims: int, names: Sequence[str] | None) -> Maps:
    """Heatmaps as a grid of images and explanations.

    Args:
        heatmap: [H, W], [C, H, W], [N, C, H, W] or, with several targets, [N, T, C, H, W] (volumes: D ahead of H, and no [D, H, W]);
            or a mapping from names to heatmaps of one shape without targets.
        dims: number of spatial dimensions, 2 or 3.
        names: of the targets.

    Raises:
        TypeError, ValueError: see :func:`array`; shapes that do not fit; another number of names.
    """
    if dims not in (2, 3):
        raise ValueError(f"dims must be 2 (pictures) or 3 (volumes), got {dims!r}")
    axes = "H, W" if dims == 2 else "D, H, W"
    if isinstance(heatmap, Mapping):
        if not heatmap:
            raise ValueError("heatmap: the mapping is empty")
        if names is not None:
            raise ValueError("names: the keys of heatmap are the names already")
        several = {str(key): _batch(f"heatmap[{key!r}]", value, dims) for key, value in heatmap.items()}
        shapes = {key: (found.shape[0], *found.shape[2:]) for key, found in several.items()}
        first = next(iter(shapes.values()))
        for key, shape in shapes.items():
            if shape != first:
                raise ValueError(
                    f"heatmap[{key!r}]: {_text(shape)} as [N, {axes}] differs from the first map's {_text(first)}"
                )
        summed = [found.sum(1, keepdims=True) for found in several.values()]
        return Maps(np.stack(summed, 1), tuple(several))
    found = array("heatmap", heatmap)
    if found.ndim == 3 + dims:
        count = found.shape[1]
        texts = tuple(map(str, names)) if names is not None else tuple(f"target {i}" for i in range(count))
        if len(texts) != count:
            raise ValueError(f"names: {count} texts are expected, one for each target of heatmap, got {len(texts)}")
        return Maps(found, texts)
    if names is not None:
        raise ValueError(f"names: heatmap of shape {_text(found.shape)} has no targets; labels names the images")
    return Maps(_batch("heatmap", found, dims)[:, None], ("",))


def _batch(name: str, given: Any, dims: int) -> Array:
    """[N, C, ...], one image or one channel being a batch or a stack of one."""
    found = array(name, given)
    axes = "H, W" if dims == 2 else "D, H, W"
    least = 2 if dims == 2 else 4  # [C, H, W] and [D, H, W] would look the same
    if not least <= found.ndim <= 2 + dims:
        forms = f"[{axes}], [C, {axes}] or [N, C, {axes}]" if dims == 2 else f"[C, {axes}] or [N, C, {axes}]"
        raise ValueError(
            f"{name}: expected {forms}{'' if dims == 3 else ' (volumes: dims=3)'}, got shape {_text(found.shape)}"
        )
    return found.reshape((1,) * (2 + dims - found.ndim) + found.shape)


def images_of(
    image: Any,
    maps: Maps,
    dims: int,
    pixels: tuple[float, float] | None,
    mean: Statistics | None,
    std: Statistics | None,
) -> Array:
    """Images as [N, 1 or 3, ...] in [0, 1], of the heatmaps' number and size.

    Args:
        image: [C, ...] or [N, C, ...]; one image serves all heatmaps.
        maps: what is shown with it.
        dims: number of spatial dimensions.
        pixels: the values that mean black and white. None: 0 and 255 for uint8, else 0 and 1.
        mean: what was subtracted; a number or one for each channel.
        std: what the rest was divided by.

    Raises:
        ValueError: values outside of ``pixels``, channels that make no picture, another size than the heatmaps'.
    """
    is_bytes = getattr(image, "dtype", None) in (torch.uint8, np.dtype(np.uint8))
    found = _batch("image", image, dims)
    size, expected = found.shape[2:], maps.values.shape[3:]
    if size != expected:
        last = found.shape[-1] in (1, 3, 4) and found.shape[1:-1] == expected
        hint = "; its channels come last: image.permute(2, 0, 1), or numpy's transpose(2, 0, 1)" if last else ""
        raise ValueError(f"image: size {_text(size)}, expected the heatmap's {_text(expected)}{hint}")
    channels = found.shape[1]
    if channels not in (1, 3):
        raise ValueError(
            f"image: {channels} channels make no picture, expected 1 or 3; choose some, as in image[..., :1, {', '.join(':' * dims)}]"
        )
    found = found * _statistic("std", std, channels, dims, 1.0) + _statistic("mean", mean, channels, dims, 0.0)
    low, high = _range("pixels", pixels) if pixels is not None else (0.0, 255.0 if is_bytes else 1.0)
    slack = _TOLERANCE * (high - low)
    if found.min() < low - slack or found.max() > high + slack:
        raise ValueError(
            f"image: values from {found.min():.4g} to {found.max():.4g} are outside of [{low:g}, {high:g}]; give pixels=(0, 255) or the "
            "range they have, or the mean= and std= that they were normalised with"
        )
    return _of_all("image", np.clip((found - low) / (high - low), 0, 1), len(maps.values))


def bounds_of(
    x: Tensor, pixels: tuple[float, float] | None, mean: Statistics | None, std: Statistics | None
) -> tuple[Tensor, Tensor]:
    """The values that black and white have in a model's input [B, C, ...], each [C or 1, 1, ...] of its dtype.

    Raises:
        ValueError: see :func:`images_of`.
    """
    channels, dims = x.shape[1], x.dim() - 2
    low, high = _range("pixels", pixels) if pixels is not None else (0.0, 1.0)
    mean_, std_ = _statistic("mean", mean, channels, dims, 0.0), _statistic("std", std, channels, dims, 1.0)
    made = (np.asarray((value - mean_) / std_).reshape(-1, *(1,) * dims) for value in (low, high))
    black, white = (torch.from_numpy(value).to(x) for value in made)
    return black, white


def masks_of(mask: Any, maps: Maps, dims: int) -> Array:
    """Masks as [N, 1, ...] in [0, 1], of the heatmaps' number and size; 1 = foreground.

    Raises:
        ValueError: values outside of [0, 1], several channels, another size than the heatmaps'.
    """
    found = array("mask", mask)
    found = found[None] if dims == 3 and found.ndim == 3 else found  # [D, H, W]: a mask has no colours to be taken for
    found = _batch("mask", found, dims)
    size, expected = found.shape[2:], maps.values.shape[3:]
    if found.shape[1] == len(maps.values) > 1 == len(found):
        found = found.swapaxes(0, 1)  # [N, H, W]
    if size != expected or found.shape[1] != 1:
        raise ValueError(
            f"mask: shape {_text(np.shape(mask))}, expected [N, 1, ...] of the heatmap's size {_text(expected)}"
        )
    if found.min() < 0 or found.max() > 1:
        raise ValueError(
            f"mask: values from {found.min():g} to {found.max():g}, expected 0 to 1 (1 = foreground), as in mask > 0"
        )
    return _of_all("mask", found, len(maps.values))


def _of_all(name: str, found: Array, count: int) -> Array:
    if len(found) not in (1, count):
        raise ValueError(f"{name}: {len(found)} of them, expected 1 or one for each of the {count} images of heatmap")
    return np.broadcast_to(found, (count, *found.shape[1:]))


def _statistic(name: str, given: Any, channels: int, dims: int, otherwise: float) -> Array | float:
    if given is None:
        return otherwise
    found = array(name, [given] if isinstance(given, (int, float)) else given).reshape(-1)
    if len(found) not in (1, channels) or (name == "std" and found.min() <= 0):
        raise ValueError(
            f"{name}: expected one {'positive ' * (name == 'std')}number or {channels}, got {found.tolist()}"
        )
    return found.reshape(-1, *(1,) * dims)


def _range(name: str, given: Any) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in given)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: expected (black, white) as two numbers, got {given!r}") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"{name}: expected (black, white) with black < white, got {given!r}")
    return low, high


def limit_of(summed: Array, clip: float) -> float:
    """Where the colour scale ends: the quantile ``clip`` of magnitudes, or their maximum if that is 0; 1 without any relevance."""
    magnitude = np.abs(summed)
    return float(np.quantile(magnitude, clip)) or float(magnitude.max()) or 1.0


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape)) or "()"
