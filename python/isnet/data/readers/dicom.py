"""DICOM."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import MAX_BYTES, Picture, Place, Reader, check_size

_DIRECTORY = b"1.2.840.10008.1.3.10"  # the class of a DICOMDIR, the table of contents of a disc
_DEFLATED = b"1.2.840.10008.1.2.1.99"  # the transfer syntax whose whole data set is compressed
_PIECE = 2**20  # bytes, unpacked at once to count them
_GROUPS = (0x0002, 0x0008)  # with which files without a preamble begin
_LONG = (b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT", b"SV", b"UV")
_ELEMENTS = 3  # in a row
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GREY, _PALETTE = ("MONOCHROME1", "MONOCHROME2"), "PALETTE COLOR"
_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")  # all come as RGB from pydicom


class DICOM(Reader):
    """One frame: images after the file's rescaling, window, palette and photometric interpretation, masks as they are stored."""

    suffixes = (".dcm", ".dicom", ".ima")
    extra = "dicom"

    def recognises(self, head: bytes) -> bool:
        if _DIRECTORY in head:
            return False
        return head[128:132] == b"DICM" or _begins_with_elements(head)

    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut

        dataset = _dataset(file)
        kind = _checked(file, dataset, scaled)
        try:
            stored = dataset.pixel_array
        except RuntimeError as error:
            raise UnreadableFileError(f"{file}: {_remedy(dataset, error)}") from error
        lossy = str(dataset.get("LossyImageCompression", "00")) == "01"
        if kind in _COLOURS:
            return Picture(stored, 2 ** int(dataset.BitsStored) - 1, lossy=lossy)
        # The transforms are for viewing: they would give the labels of a mask other numbers.
        if not scaled:
            return Picture(stored, lossy=lossy)
        if kind == _PALETTE:
            colours = apply_color_lut(stored, dataset)
            return Picture(colours, 255 if colours.dtype.itemsize == 1 else 65535)
        pixels = apply_voi_lut(apply_modality_lut(stored, dataset), dataset)
        return Picture(pixels.max() - pixels if kind == "MONOCHROME1" else pixels)

    def place(self, file: FileRef) -> Place | None:
        dataset = _dataset(file)
        position, orientation = dataset.get("ImagePositionPatient"), dataset.get("ImageOrientationPatient")
        spacing = dataset.get("PixelSpacing")
        if not (position and orientation and spacing):
            return None
        # From left, posterior, superior to right, anterior, superior.
        along, down, start = (np.array(v, float) * (-1, -1, 1) for v in (orientation[:3], orientation[3:], position))
        between_rows, between_columns = map(float, spacing)
        last = (
            along * between_columns * (int(dataset.Columns) - 1),
            down * between_rows * (int(dataset.Rows) - 1),
        )
        return Place(start + np.stack([np.zeros(3), *last]), min(between_rows, between_columns), False)


def _dataset(file: FileRef) -> Any:
    """The data set, not decoded, with a transfer syntax.

    Raises:
        UnreadableFileError: it would take too much memory.
    """
    import pydicom

    raw = file.read()
    if _DEFLATED in raw[:4096]:
        stream = io.BytesIO(raw)
        stream.seek(132 if raw[128:132] == b"DICM" else 0)
        length = struct.unpack("<I", raw[stream.tell() + 8 : stream.tell() + 12])[0]  # of the elements of group 2
        stream.seek(stream.tell() + 12 + length)
        unpacker, packed, count = zlib.decompressobj(-zlib.MAX_WBITS), stream.read(), 0
        while packed and not unpacker.eof:
            count += len(unpacker.decompress(packed, _PIECE))
            packed = unpacker.unconsumed_tail
            if count > MAX_BYTES:
                raise UnreadableFileError(
                    f"{file}: more than the {MAX_BYTES} bytes that are read; make it smaller first"
                )
    dataset = pydicom.dcmread(io.BytesIO(raw), force=True)  # without a preamble, too
    meta = dataset.file_meta
    if "TransferSyntaxUID" not in meta:
        implicit, little = dataset.original_encoding
        uid = pydicom.uid
        plain = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
        meta.TransferSyntaxUID = plain if little else uid.ExplicitVRBigEndian
    return dataset


def _checked(file: FileRef, dataset: Any, scaled: bool) -> str:
    """The photometric interpretation of a data set that can be decoded.

    Raises:
        UnreadableFileError: no pixels, several frames, too large, colours of another kind, an overlay beside the pixels of a mask.
    """
    if "Rows" not in dataset or "Columns" not in dataset or not any(name in dataset for name in _PIXELS):
        raise UnreadableFileError(f"{file}: a DICOM file without pixels")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1:
        raise UnreadableFileError(f"{file}: expected one frame, got {frames}; save the one to use as a file of its own")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    check_size(file, int(dataset.Rows), int(dataset.Columns), -(-samples * int(dataset.get("BitsAllocated", 8)) // 8))
    kind = str(dataset.get("PhotometricInterpretation", _GREY[1])).strip()
    if kind not in (*_GREY, _PALETTE, *_COLOURS) or (samples == 3) != (kind in _COLOURS):
        raise UnreadableFileError(f"{file}: {samples} samples of the kind {kind} are not read; save it as RGB")
    tags = dataset.keys()
    if not scaled and any(tag.group & 0xFF00 == 0x6000 and tag.element == 0x3000 for tag in tags):
        raise UnreadableFileError(f"{file}: an overlay beside the pixels; save the mask alone as a file of its own")
    return kind


def _remedy(dataset: Any, error: RuntimeError) -> str:
    """Why the pixels cannot be decoded, in one line: usually a package that is missing."""
    from pydicom.pixels import get_decoder

    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return f"the transfer syntax {syntax.name} is not read; decompress it first"
    missing = "; ".join(text.partition(" - requires ")[2] for text in decoder.missing_dependencies)
    install = f"pip install one of these ({missing})"
    if not decoder.is_available:
        return f"{syntax.name} needs another package: {install}"
    text = f"cannot be read ({' '.join(str(error).split())})"
    return f"{text}; another decoder of {syntax.name} may read it: {install}" if missing else text


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
        if group not in (_GROUPS if count == 0 else range(_GROUPS[0], 0x7FE1)) or not last < (group, element):
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
