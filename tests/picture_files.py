"""Files of images and masks of every kind, from arrays."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

Array = np.ndarray[Any, Any]


def stretched(pixels: Array) -> Array:
    """From the smallest to the largest number."""
    wide = pixels.astype(np.float64)
    return (wide - wide.min()) / ((wide.max() - wide.min()) or 1)


def png(path: Path, pixels: Array, bits: int, colour_type: int, size: tuple[int, int] | None = None) -> None:
    """A PNG of any depth, written byte by byte; ``size``: (height, width) that its header tells."""
    height, width = size or pixels.shape[:2]
    rows = pixels.reshape(len(pixels), -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    else:
        spread = (rows[..., None] >> np.arange(bits)[::-1]) & 1
        lines = [np.packbits(row.reshape(-1)).tobytes() for row in spread]
    head = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = {b"IHDR": head, b"IDAT": zlib.compress(b"".join(b"\0" + line for line in lines)), b"IEND": b""}
    chunks = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts.items())
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def palette_image(indices: Array, colours: list[tuple[int, int, int]]) -> Image.Image:
    """An image of indices."""
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette([value for colour in colours for value in colour])
    return image


def dicom(
    path: Path, pixels: Array, kind: str = "MONOCHROME2", syntax: str = ExplicitVRLittleEndian, **tags: Any
) -> None:
    """A secondary capture of one frame; ``tags`` are set at the end."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    colours = pixels.ndim == 3 and kind not in ("MONOCHROME2",)
    dataset.Rows, dataset.Columns = pixels.shape[-3:-1] if colours else pixels.shape[-2:]
    dataset.SamplesPerPixel = pixels.shape[-1] if colours else 1
    if colours:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.PhotometricInterpretation = kind
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path, enforce_file_format=True)


def without_preamble(path: Path, *, meta: bool, implicit: bool = False) -> None:
    """Takes the preamble of a DICOM file away, and its file meta information."""
    if meta:
        path.write_bytes(path.read_bytes()[132:])
        return
    dataset = pydicom.dcmread(path)
    del dataset.file_meta
    stream = DicomBytesIO()
    stream.is_little_endian, stream.is_implicit_VR = True, implicit
    write_dataset(stream, dataset)
    path.write_bytes(stream.getvalue())


def lookup_tables(colours: list[tuple[int, int, int]], bits: int = 8) -> dict[str, Any]:
    """The tags of a DICOM palette."""
    tags: dict[str, Any] = {}
    for name, values in zip(("Red", "Green", "Blue"), np.array(colours).T, strict=True):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [len(values), 0, bits]
        entries = values.astype(np.uint8) if bits == 8 else values.astype("<u2") * 257
        tags[f"{name}PaletteColorLookupTableData"] = entries.tobytes()
    return tags


def affine(columns: str, spacing: float = 2.0, origin: tuple[float, float, float] = (0, 0, 0)) -> Array:
    """Of an image whose axes point to these directions, as "LPS"."""
    matrix = np.eye(4)
    matrix[:3, :3] = 0
    for axis, letter in enumerate(columns):
        row, sign = next(
            (i, 1 - 2 * names.index(letter)) for i, names in enumerate(("RL", "AP", "SI")) if letter in names
        )
        matrix[row, axis] = sign * spacing
    matrix[:3, 3] = origin
    return matrix


def nifti(path: Path, pixels: Array, matrix: Array | None = None, *, placed: bool = True) -> None:
    """A NIfTI-1 file of [H, W]; its first axis is the image's x. ``placed``: whether its header tells where that lies."""
    matrix = affine("RAS") if matrix is None else matrix
    nibabel.save(nibabel.Nifti1Image(pixels.T[..., None], matrix if placed else None, dtype=pixels.dtype), path)
