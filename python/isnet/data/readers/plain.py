"""PNG, JPEG and the like."""

from __future__ import annotations

import io
import re

import numpy as np
from PIL import Image, ImageOps

from isnet.data.files import FileRef
from isnet.data.readers.base import Pixels, Reader

_MARKS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff",  # JPEG
    b"GIF87a",
    b"GIF89a",
    *(b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),  # TIFF, BigTIFF
)
_ORIENTATION = 0x0112  # the EXIF tag for the camera's orientation


class Plain(Reader):
    """PNG, JPEG, BMP, TIFF, WebP, PGM; cameras' pictures are turned upright."""

    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".pbm", ".pgm", ".ppm")

    def recognises(self, head: bytes) -> bool:
        return (
            head.startswith(_MARKS)
            or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
            or _is_netpbm(head)
            or _is_bmp(head)
        )

    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
        with Image.open(io.BytesIO(file.read())) as image:
            if image.getexif().get(_ORIENTATION, 1) != 1:
                ImageOps.exif_transpose(image, in_place=True)
            if image.mode in ("I;16", "I;16B", "I"):
                return np.asarray(image), 65535
            if image.mode == "F":
                return np.asarray(image), None
            grey = image.mode in ("1", "L", "LA")
            return np.asarray(image.convert("L" if grey else "RGB")), 255


def _is_netpbm(head: bytes) -> bool:
    """PBM, PGM, PPM: P1 to P6, a space and a number or a comment."""
    return bool(re.match(rb"P[1-6]\s+[#0-9]", head))


def _is_bmp(head: bytes) -> bool:
    """``BM`` alone begins many a text; the size of the second header tells."""
    return head[:2] == b"BM" and head[14:18] in {size.to_bytes(4, "little") for size in (12, 40, 52, 56, 64, 108, 124)}
