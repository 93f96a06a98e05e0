"""TIFF and BigTIFF."""

from __future__ import annotations

import io
import logging
from typing import Any

import numpy as np
from PIL import Image

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import Picture, Pixels, Reader, check_size, upright

_GREY = {0: "white is zero", 1: "black is zero", 4: "mask"}
_RGB, _PALETTE, _CMYK, _YCBCR = 2, 3, 5, 6
_BASE = {**dict.fromkeys(_GREY, 1), _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}  # samples per pixel without extra ones
_JPEG = (6, 7, 34892)
_LOSSY = (*_JPEG, 34712, 33003, 33004, 33005, 50001, 50002)  # JPEG 2000, WebP, JPEG XL may be
_SELF_DESCRIBING = (7, 34892, 34712, 50001)  # JPEG, JPEG 2000 and WebP, each piece a picture with a size of its own
_ORIENTATION = 274
_SILENT = logging.NullHandler()
_PREMULTIPLIED, _ALPHA = 1, 2  # kinds of extra samples


class TIFF(Reader):
    """The only page of a file; thumbnails beside it do not count."""

    suffixes = (".tif", ".tiff")
    extra = "isnet"

    def recognises(self, head: bytes) -> bool:
        return head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"))

    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        import tifffile

        tifffile.logger().addHandler(_SILENT)  # what it warns of becomes an error here, or does not matter
        raw = file.read()
        with tifffile.TiffFile(io.BytesIO(raw)) as tiff:
            page = _only_page(file, tiff)
            if page.compression in _SELF_DESCRIBING:
                _check_pieces(file, page, raw)
            photometric = int(page.photometric)
            if photometric not in _BASE or (photometric == _YCBCR and page.compression not in _JPEG):
                name = getattr(page.photometric, "name", photometric)
                raise UnreadableFileError(f"{file}: colours of the kind {name} are not read; save it as RGB")
            if page.dtype is None or page.dtype.kind not in "buif":
                raise UnreadableFileError(f"{file}: expected real numbers, got {page.dtype or page.bitspersample}")
            pixels, alpha = _split(file, _decoded(page), page.extrasamples, _BASE[photometric])
            palette = _colours(page.colormap) if photometric == _PALETTE else None
            bits, tag = int(page.bitspersample), page.tags.get(_ORIENTATION)
            orientation, lossy = 1 if tag is None else int(tag.value), page.compression in _LOSSY
            premultiplied = _PREMULTIPLIED in page.extrasamples
        largest = None if pixels.dtype.kind in "if" or bits > 16 else float(2**bits - 1)
        if photometric == _CMYK:
            white = np.float32(pixels.max() if largest is None else largest)
            pixels = (white - pixels[..., :3]) * ((white - pixels[..., 3:]) / white)
        if palette is not None and scaled:
            pixels, largest, palette = palette[pixels], 255.0, None
        if photometric == 0 and scaled:
            pixels = (pixels.max() if largest is None else pixels.dtype.type(largest)) - pixels
        if alpha is not None:
            alpha = upright(alpha / (np.float32(largest) if largest else max(alpha.max(), 1)), orientation)
        return Picture(
            upright(pixels, orientation),
            largest,
            None if premultiplied and scaled else alpha,  # its colours are on black already
            palette,
            lossy,
            photometric == 0 and not scaled,
        )


def _only_page(file: FileRef, tiff: Any) -> Any:
    """The page, if there is one, and none too large to decode."""
    pages: list[Any] = []
    for page in tiff.pages:
        pages += [] if page.is_reduced and pages else [page]
        if len(pages) > 1:
            break
    if not pages:
        raise UnreadableFileError(f"{file}: no page")
    several = len(pages) > 1 or pages[0].imagedepth > 1 or (tiff.imagej_metadata or {}).get("images", 1) > 1
    if several:
        raise UnreadableFileError(f"{file}: several pages; save the one to use as a file of its own")
    page = pages[0]
    number = 8 if page.dtype is None else page.dtype.itemsize
    check_size(file, page.imagelength, page.imagewidth, page.samplesperpixel * number)
    check_size(file, page.tilelength or 1, page.tilewidth or 1, page.samplesperpixel * number)
    return page


def _check_pieces(file: FileRef, page: Any, raw: bytes) -> None:
    """Refuses pieces that are larger themselves than the file tells."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        with Image.open(io.BytesIO(raw[start : start + count]), formats=("JPEG", "JPEG2000", "WEBP")) as piece:
            check_size(file, piece.height, piece.width, page.samplesperpixel)


def _decoded(page: Any) -> Pixels:
    """[H, W, S], whatever the planar configuration."""
    pixels = page.asarray(squeeze=False)[:, 0]  # separate samples, height, width, samples that lie together
    pixels = pixels.astype(np.uint8) if pixels.dtype.kind == "b" else pixels
    return np.moveaxis(pixels, 0, -1)[..., 0, :] if len(pixels) > 1 else pixels[0]


def _split(file: FileRef, pixels: Pixels, extra: tuple[int, ...], base: int) -> tuple[Pixels, Pixels | None]:
    """Pixels, [H, W] if there is one sample, and alpha from the extra samples. One of unknown meaning may be there if it never changes."""
    alpha = None
    for place in range(base, pixels.shape[-1]):
        sample = pixels[..., place]
        kind = int(extra[place - base]) if place - base < len(extra) else 0
        if kind in (_PREMULTIPLIED, _ALPHA) and alpha is None:
            alpha = sample
        elif sample.min() != sample.max():
            raise UnreadableFileError(
                f"{file}: {pixels.shape[-1]} samples per pixel, of which the meaning of number {place + 1} is unknown; "
                "save it as grey or RGB"
            )
    return (pixels[..., 0] if base == 1 else pixels[..., :base]), alpha


def _colours(colormap: Pixels) -> Pixels:
    """The palette [N, 3] in 8 bits; the file's has 16, or 8 from some programs."""
    return (colormap >> 8 if colormap.max() > 255 else colormap).astype(np.uint8).T
