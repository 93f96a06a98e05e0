"""Readers of image files: one class in one file for each kind, entered in one table."""

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import Pixels, Reader
from isnet.data.readers.dicom import DICOM
from isnet.data.readers.nifti import NIfTI
from isnet.data.readers.plain import Plain

READERS: dict[str, Reader] = {"plain": Plain(), "dicom": DICOM(), "nifti": NIfTI()}


def image_suffixes() -> tuple[str, ...]:
    """The suffixes that some reader takes, in lower case."""
    return tuple(suffix for reader in READERS.values() for suffix in reader.suffixes)


def reader_of(file: FileRef) -> Reader:
    """The reader of a file, by its suffix.

    Raises:
        UnreadableFileError: there is none.
    """
    for reader in READERS.values():
        if file.suffix in reader.suffixes:
            return reader
    raise UnreadableFileError(f"{file}: expected an image ({', '.join(image_suffixes())})")


__all__ = ["READERS", "Pixels", "Reader", "image_suffixes", "reader_of"]
