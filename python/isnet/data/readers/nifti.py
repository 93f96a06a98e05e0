"""NIfTI."""

from __future__ import annotations

import gzip
import zlib

import numpy as np

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import HEAD, Pixels, Reader


class NIfTI(Reader):
    """A two-dimensional image."""

    suffixes = (".nii", ".nii.gz")
    extra = "nifti"

    def recognises(self, head: bytes) -> bool:
        if head.startswith(b"\x1f\x8b"):
            try:
                head = zlib.decompressobj(wbits=31).decompress(head, HEAD)
            except zlib.error:
                return False
        return head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] in (b"n+2\0", b"ni2\0")

    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
        import nibabel

        raw = file.read()
        if raw.startswith(b"\x1f\x8b"):
            raw = gzip.decompress(raw)
        pixels = np.squeeze(np.asarray(nibabel.Nifti1Image.from_bytes(raw).dataobj))
        if pixels.ndim != 2:
            raise UnreadableFileError(f"{file}: expected a two-dimensional image, got shape {pixels.shape}")
        return pixels.T, None  # NIfTI's first axis is x
