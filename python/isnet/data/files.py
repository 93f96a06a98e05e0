"""Image files: PNG, JPEG and the like, DICOM and NIfTI, on disk or inside a tar shard."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

PLAIN_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm")
DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")
IMAGE_SUFFIXES = (*PLAIN_SUFFIXES, *DICOM_SUFFIXES, *NIFTI_SUFFIXES)
_ORIENTATION = 0x0112  # the EXIF tag for the camera's orientation
_LUMA = (0.299, 0.587, 0.114)
_LABELS = 32  # a mask of whole numbers below this holds labels, not brightness


class UnreadableFileError(ValueError):
    """A file that is missing, broken or of another kind; the text names it."""


@dataclass(frozen=True)
class FileRef:
    """A file, or a stretch of one.

    Attributes:
        path: Of the file.
        offset, size: Where the stretch lies, in bytes; None: the whole file.
        name: Of the stretch, with the suffix of its kind.
    """

    path: Path
    offset: int | None = None
    size: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    @property
    def suffix(self) -> str:
        """The suffix that shows the kind."""
        return suffix_of(self.name or self.path.name)

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.is_file()

    def read(self) -> bytes:
        """Its bytes."""
        with self.path.open("rb") as file:
            if self.offset is None:
                return file.read()
            file.seek(self.offset)
            return file.read(-1 if self.size is None else self.size)


def suffix_of(name: str) -> str:
    """The suffix in lower case; ``.nii.gz`` counts as one."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]


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
    try:
        if file.suffix in DICOM_SUFFIXES:
            pixels, largest = _dicom(file, scaled)
        else:
            pixels, largest = _nifti(file) if file.suffix in NIFTI_SUFFIXES else _plain(file)
        pixels = np.asarray(pixels, dtype=np.float32)
        if not np.isfinite(pixels).all():
            raise ValueError("pixels are not finite")
    except ModuleNotFoundError as error:
        extra = "dicom" if file.suffix in DICOM_SUFFIXES else "nifti"
        raise UnreadableFileError(f"{file}: needs the extra {extra}: pip install {error.name}") from error
    except UnreadableFileError:
        raise
    except Exception as error:  # the readers raise errors of every kind on broken files
        raise UnreadableFileError(f"{file}: cannot be read ({type(error).__name__}: {error})") from error
    if not scaled:
        return pixels
    return _stretched(pixels) if largest is None else pixels / np.float32(largest)


# The readers: pixels, and the largest number that their format has (None: no fixed range).


def _plain(file: FileRef) -> tuple[np.ndarray[Any, Any], int | None]:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(file.read())) as image:
        if image.getexif().get(_ORIENTATION, 1) != 1:
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode in ("I;16", "I;16B", "I"):
            return np.asarray(image), 65535
        if image.mode == "F":
            return np.asarray(image), None
        grey = image.mode in ("1", "L", "LA")
        return np.asarray(image.convert("L" if grey else "RGB")), 255


def _dicom(file: FileRef, scaled: bool) -> tuple[np.ndarray[Any, Any], int | None]:
    import pydicom
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    dataset = pydicom.dcmread(io.BytesIO(file.read()))
    stored = dataset.pixel_array
    if int(dataset.get("SamplesPerPixel", 1)) == 3:
        if stored.ndim != 3:
            raise UnreadableFileError(f"{file}: expected one frame, got pixels of shape {stored.shape}")
        return stored, 2 ** int(dataset.BitsStored) - 1
    if stored.ndim != 2:
        raise UnreadableFileError(f"{file}: expected one frame, got pixels of shape {stored.shape}")
    # The transforms are for viewing: they would give the labels of a mask other numbers.
    pixels = apply_voi_lut(apply_modality_lut(stored, dataset), dataset) if scaled else stored
    inverted = dataset.get("PhotometricInterpretation") == "MONOCHROME1"
    return pixels.max() - pixels if inverted else pixels, None


def _nifti(file: FileRef) -> tuple[np.ndarray[Any, Any], None]:
    import nibabel

    raw = file.read()
    if file.suffix == ".nii.gz":
        import gzip

        raw = gzip.decompress(raw)
    pixels = np.squeeze(np.asarray(nibabel.Nifti1Image.from_bytes(raw).dataobj))
    if pixels.ndim != 2:
        raise UnreadableFileError(f"{file}: expected a two-dimensional image, got shape {pixels.shape}")
    return pixels.T, None  # NIfTI's first axis is x


def _stretched(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    low, high = float(pixels.min()), float(pixels.max())
    return (pixels - low) / ((high - low) or 1)
