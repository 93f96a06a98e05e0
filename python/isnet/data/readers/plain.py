"""PNG, JPEG and the like."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from isnet.data.files import FileRef
from isnet.data.readers.base import Pixels, Reader

_ORIENTATION = 0x0112  # the EXIF tag for the camera's orientation


class Plain(Reader):
    """PNG, JPEG, BMP, TIFF, WebP, PGM; cameras' pictures are turned upright."""

    suffixes = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm")

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
