"""DICOM."""

from __future__ import annotations

import io
import struct

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import Pixels, Reader

_DIRECTORY = b"1.2.840.10008.1.3.10"  # the class of a DICOMDIR, the table of contents of a disc
_GROUPS = (0x0002, 0x0008)  # with which files without a preamble begin
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_ELEMENTS = 3  # in a row


class DICOM(Reader):
    """One frame, after the file's rescaling, window and photometric interpretation."""

    suffixes = (".dcm", ".dicom")
    extra = "dicom"

    def recognises(self, head: bytes) -> bool:
        if _DIRECTORY in head:
            return False
        return head[128:132] == b"DICM" or _begins_with_elements(head)

    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
        import pydicom
        from pydicom.pixels import apply_modality_lut, apply_voi_lut

        dataset = pydicom.dcmread(io.BytesIO(file.read()), force=True)  # without a preamble, too
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


def _begins_with_elements(head: bytes) -> bool:
    """Whether there is a data set without a preamble: elements in ascending order from the groups that come first."""
    return any(_elements(head, order) >= _ELEMENTS for order in "<>")


def _elements(head: bytes, order: str) -> int:
    """How many elements in a row a data set begins with, in this byte order."""
    place, last = 0, (0, 0)
    for count in range(_ELEMENTS):
        if len(head) < place + 12:
            return count
        group, element = struct.unpack_from(order + "HH", head, place)
        if group not in _GROUPS or not last < (group, element):
            return count
        last, kind = (group, element), head[place + 4 : place + 6]
        if not (kind.isalpha() and kind.isupper()):  # implicit
            length, start = struct.unpack_from(order + "I", head, place + 4)[0], 8
        elif kind in _LONG:
            length, start = struct.unpack_from(order + "I", head, place + 8)[0], 12
        else:
            length, start = struct.unpack_from(order + "H", head, place + 6)[0], 8
        place += start + length
    return _ELEMENTS
