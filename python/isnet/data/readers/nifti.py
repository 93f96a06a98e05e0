"""NIfTI."""

from __future__ import annotations

import gzip

import numpy as np

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import Pixels, Reader


class NIfTI(Reader):
    """A two-dimensional image."""

    suffixes = (".nii", ".nii.gz")
    extra = "nifti"

    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
        import nibabel

        raw = file.read()
        if file.suffix == ".nii.gz":
            raw = gzip.decompress(raw)
        pixels = np.squeeze(np.asarray(nibabel.Nifti1Image.from_bytes(raw).dataobj))
        if pixels.ndim != 2:
            raise UnreadableFileError(f"{file}: expected a two-dimensional image, got shape {pixels.shape}")
        return pixels.T, None  # NIfTI's first axis is x
