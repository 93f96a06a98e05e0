"""From a file to what the network sees: images in [0, 1], masks of 0 and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers import reader_of

_LUMA = (0.299, 0.587, 0.114)
_LABELS = 32  # a mask of whole numbers below this holds labels, not brightness


def read_image(file: FileRef, channels: int = 1) -> Tensor:
    """An image as the network will see it.

    Cameras' pictures are turned upright (EXIF), and so are masks.

    8-bit files are divided by 255 and 16-bit files by 65535. DICOM and NIfTI have no fixed range: the pixels, after the file's own
    rescaling, window and photometric interpretation, are scaled so that the smallest becomes 0 and the largest 1.

    Args:
        file: PNG, JPEG, BMP, TIFF, WebP, PGM; DICOM (extra ``dicom``); a two-dimensional NIfTI (extra ``nifti``).
        channels: 1 (colour becomes luma) or 3 (grey is repeated).

    Returns:
        float32 [channels, H, W] in [0, 1].

    Raises:
        UnreadableFileError: names the file and what is wrong with it.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    pixels = torch.from_numpy(np.ascontiguousarray(_pixels(file), dtype=np.float32))
    pixels = pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1).contiguous()
    return (pixels * torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)


def read_mask(file: FileRef) -> Tensor:
    """A foreground mask: float32 [1, H, W] of 0 and 1.

    Where a file holds whole numbers from 0 to 31 only, they are labels (0 and 1, or one number per organ), and all but 0 are foreground;
    else what is above half of the file's largest value, so that smooth edges and JPEG's noise do no harm. Colours count by their brightest
    channel.

    Raises:
        UnreadableFileError: names the file and what is wrong with it.
    """
    pixels = np.asarray(_pixels(file, scaled=False), dtype=np.float32)
    if pixels.ndim == 3:
        pixels = pixels.max(-1)
    labels = pixels.min() >= 0 and pixels.max() < _LABELS and bool((pixels == np.rint(pixels)).all())
    return torch.from_numpy((pixels > (0 if labels else pixels.max() / 2)).astype(np.float32))[None]


def _pixels(file: FileRef, *, scaled: bool = True) -> np.ndarray[Any, Any]:
    """float32 [H, W] or [H, W, 3], in [0, 1]; or the numbers that the file holds."""
    if not file.exists():
        raise UnreadableFileError(f"{file}: no such file")
    reader = reader_of(file)
    try:
        pixels, largest = reader.read(file, scaled=scaled)
        pixels = np.asarray(pixels, dtype=np.float32)
        if not np.isfinite(pixels).all():
            raise ValueError("pixels are not finite")
    except ModuleNotFoundError as error:
        raise UnreadableFileError(f"{file}: needs the extra {reader.extra}: pip install {error.name}") from error
    except UnreadableFileError:
        raise
    except Exception as error:  # the readers raise errors of every kind on broken files
        raise UnreadableFileError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if not scaled:
        return pixels
    return _stretched(pixels) if largest is None else pixels / np.float32(largest)


def _stretched(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(pixels.min()), float(pixels.max())
    return (pixels - low) / ((high - low) or 1)
