"""Readers of image files: one class in one file for each kind, entered in one table."""

from isnet.data.files import FileRef, UnreadableFileError
from isnet.data.readers.base import HEAD, MAX_FILE, Picture, Pixels, Place, Reader
from isnet.data.readers.dicom import DICOM
from isnet.data.readers.nifti import NIfTI
from isnet.data.readers.plain import Plain
from isnet.data.readers.tiff import TIFF

# In the order in which they are asked: a DICOM file may begin as a TIFF file does.
READERS: dict[str, Reader] = {"dicom": DICOM(), "nifti": NIfTI(), "tiff": TIFF(), "plain": Plain()}


def image_suffixes() -> tuple[str, ...]:
    """The suffixes that some reader takes, in lower case."""
    return tuple(suffix for reader in READERS.values() for suffix in reader.suffixes)


def kind_of(file: FileRef) -> str | None:
    """The key in :data:`READERS` of a file, by its content; reads no more than its head.

    The suffix decides where the content doesn't: an empty, broken or unreadable ``x.png`` is an image, whose reading then tells what is
    wrong with it, and so is a file of a kind without a mark.

    Args:
        file: Of any kind and name.

    Returns:
        None: no image.
    """
    try:
        head = file.head(HEAD)
    except OSError:
        head = b""
    found = next((kind for kind, reader in READERS.items() if reader.recognises(head)), None)
    return found or next((kind for kind, reader in READERS.items() if file.suffix in reader.suffixes), None)


def reader_of(file: FileRef) -> Reader:
    """The reader of a file, by its content (:func:`kind_of`).

    Raises:
        UnreadableFileError: there is none.
    """
    kind = kind_of(file)
    if kind is None:
        raise UnreadableFileError(f"{file}: expected an image ({', '.join(image_suffixes())})")
    return READERS[kind]


__all__ = ["MAX_FILE", "READERS", "Picture", "Pixels", "Place", "Reader", "image_suffixes", "kind_of", "reader_of"]
