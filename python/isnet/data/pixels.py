"""From a file to what the network sees: images in [0, 1], masks of 0 and 1."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.mask_reading import MaskReading, MaskValues, UnclearMaskError, foreground
from isnet.data.readers import MAX_FILE, Picture, Pixels, Reader, reader_of

_LUMA = (0.299, 0.587, 0.114)
_APART = 0.1  # of a pixel: how far the corners of a mask may lie from those of its image
Found = TypeVar("Found")


def read_image(file: FileRef, channels: int = 1) -> Tensor:
    """An image as the network will see it; docs/pixels.md has every format.

    Cameras' pictures are turned upright (EXIF), and so are masks. Transparent pixels are shown on black.

    8-bit files are divided by 255 and 16-bit files by 65535. DICOM and NIfTI, and TIFF with signed, 32-bit or floating-point numbers, have
    no fixed range: the pixels, after the file's own rescaling, window and photometric interpretation, are scaled so that the smallest
    becomes 0 and the largest 1.

    Args:
        file: PNG, JPEG, GIF, BMP, TIFF, WebP, PBM, PGM, PPM; DICOM (extra ``dicom``); a two-dimensional NIfTI (extra ``nifti``).
        channels: 1 (colour becomes luma) or 3 (grey is repeated).

    Returns:
        float32 [channels, H, W] in [0, 1].

    Raises:
        UnreadableFileError: names the file and what is wrong with it.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 1 or 3, got {channels}")
    picture = _picture(file, scaled=True)
    pixels = torch.from_numpy(_in_unit_range(picture))
    pixels = pixels[None] if pixels.dim() == 2 else pixels.movedim(-1, 0)
    if picture.alpha is not None:
        pixels *= torch.from_numpy(np.ascontiguousarray(picture.alpha, dtype=np.float32))
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1).contiguous()
    return pixels.mul_(torch.tensor(_LUMA).view(3, 1, 1)).sum(0, keepdim=True)


def read_mask(file: FileRef, foreground_values: Collection[float | str] = (), void: int | None = None) -> Tensor:
    """A foreground mask: float32 [1, H, W] of 0 and 1.

    Whole numbers that are few, small or in areas are labels (0 and 1, or one number per organ), as are the indices of a palette: all but
    0 are foreground. Of a few colours all but black are, of a picture with a transparent background what is not transparent. Else it is
    what is above half of the file's largest number, so that smooth edges and JPEG's noise do no harm. docs/pixels.md has the whole rule.

    Args:
        file: As for :func:`read_image`; its numbers are taken as they are stored.
        foreground_values: Which values are foreground: numbers, or texts as ``"1"``, ``"128-255"``, ``"#ff0000"``; by default what the rule
            finds. Those of a palette are its indices.
        void: A number that stands for void, as 255 often does, and is background.

    Raises:
        UnreadableFileError: names the file and what is wrong with it, or why it can be read in more than one way.
        ValueError: ``foreground_values`` of another form.
    """
    return torch.from_numpy(_mask(file, MaskValues.of(foreground_values, void))[0].astype(np.float32))[None]


def mask_reading(
    file: FileRef, foreground_values: Collection[float | str] = (), void: int | None = None
) -> MaskReading:
    """How :func:`read_mask` reads a mask: as what, and which values are foreground. ``str()`` of it is one line.

    ``isnet data check`` prints it; :func:`isnet.data.mask_reading.kinds_that_differ` compares those of a set.

    Args:
        file, foreground_values, void: As for :func:`read_mask`.

    Raises:
        As :func:`read_mask`.
    """
    return _mask(file, MaskValues.of(foreground_values, void))[1]


def check_places(image: FileRef, mask: FileRef) -> None:
    """Compares where an image and its mask lie in space, if their files tell (NIfTI, DICOM); reads the headers alone.

    Raises:
        UnreadableFileError: they lie in different places, or only one tells, and its pixels were turned because of it.
    """
    places = [_guarded(file, lambda reader, file=file: reader.place(file)) for file in (image, mask)]  # type: ignore[misc]
    first, second = places
    if first is not None and second is not None:
        apart = float(np.linalg.norm(first.corners - second.corners, axis=1).max())
        if not apart <= _APART * first.pixel:  # NaN, too
            raise UnreadableFileError(
                f"{mask}: lies up to {apart:.4g} mm away from {image}; resample it to the image's grid (origin, spacing "
                "and directions)"
            )
    elif any(place is not None and place.turned for place in places):
        turned, other = (mask, image) if first is None else (image, mask)
        raise UnreadableFileError(
            f"{turned}: its header turns it, and {other} does not tell its own orientation; save both as NIfTI, or turn "
            "this one to right, anterior, superior (RAS)"
        )


def _mask(file: FileRef, values: MaskValues) -> tuple[Pixels, MaskReading]:
    try:
        return foreground(_picture(file, scaled=False), values)
    except UnclearMaskError as error:
        raise UnreadableFileError(f"{file}: {error}") from error


def _in_unit_range(picture: Picture) -> Pixels:
    """float32 in [0, 1], in an array of its own."""
    if picture.largest is not None:
        pixels = np.array(picture.pixels, dtype=np.float32, order="C")
        pixels /= np.float32(picture.largest)
        return pixels
    # In double precision: large numbers may lie close together.
    low, high = float(picture.pixels.min()), float(picture.pixels.max())
    pixels = np.subtract(picture.pixels, low, dtype=np.float64)
    pixels /= (high - low) or 1
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _picture(file: FileRef, *, scaled: bool) -> Picture:
    """What the file holds; its pixels are finite, and there is at least one."""

    def read(reader: Reader) -> Picture:
        picture = reader.read(file, scaled=scaled)
        if picture.pixels.dtype.kind == "f" and not np.isfinite(picture.pixels).all():
            raise ValueError("pixels are not finite")
        if picture.pixels.dtype.kind not in "buif" or picture.pixels.size == 0:
            raise ValueError(f"expected real numbers, got {picture.pixels.dtype} {list(picture.pixels.shape)}")
        return picture

    return _guarded(file, read)


def _guarded(file: FileRef, read: Callable[[Reader], Found]) -> Found:
    """What the reader of a file gives; every error becomes one line that names the file."""
    if not file.exists():
        raise UnreadableFileError(f"{file}: no such file")
    reader = reader_of(file)
    try:
        length = file.path.stat().st_size if file.size is None else file.size
        if length > MAX_FILE:
            raise UnreadableFileError(f"{file}: {length} bytes are more than the {MAX_FILE} that are read")
        return read(reader)
    except ModuleNotFoundError as error:
        raise UnreadableFileError(f"{file}: needs the extra {reader.extra}: pip install {error.name}") from error
    except UnreadableFileError:
        raise
    except Exception as error:  # the readers raise errors of every kind on broken files
        text = " ".join(str(error).split())
        raise UnreadableFileError(f"{file}: cannot be read ({type(error).__name__}: {text})") from error
