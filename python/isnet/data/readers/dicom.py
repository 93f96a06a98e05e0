"""DICOM."""

from __future__ import annotations

import io

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import Pixels, Reader


class DICOM(Reader):
    """One frame, after the file's rescaling, window and photometric interpretation."""

    suffixes = (".dcm", ".dicom")
    extra = "dicom"

    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
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
