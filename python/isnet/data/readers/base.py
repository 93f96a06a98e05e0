"""What a reader of image files is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from isnet.data.files import FileRef, UnreadableFileError

HEAD = 4096  # bytes by which a kind is recognised
# What is larger is refused by its header, before it is decoded.
MAX_PIXELS = 50_000_000  # height times width
MAX_BYTES = 200_000_000  # of the numbers, decoded
MAX_FILE = 2**30  # bytes of a file as it lies on the disk
Pixels = np.ndarray[Any, Any]


class Picture(NamedTuple):
    """What a file holds.

    Attributes:
        pixels: [H, W] numbers, or [H, W, 3] colours.
        largest: The number that stands for white; None: the format has no fixed range.
        alpha: [H, W], 0: transparent, 1: opaque; None: there is none.
        palette: Colours [N, 3], 0 to 255, if the pixels of a mask are indices.
        lossy: Whether the compression changes numbers.
        white_is_zero: Whether the stored numbers of a mask are brighter the smaller they are.
    """

    pixels: Pixels
    largest: float | None = None
    alpha: Pixels | None = None
    palette: Pixels | None = None
    lossy: bool = False
    white_is_zero: bool = False


class Place(NamedTuple):
    """Where an image lies in space.

    Attributes:
        corners: [3, 3], mm: the positions of the first pixel, of the last one of its row, and of the last one of its column.
        pixel: The shorter side of a pixel, mm.
        turned: Whether the pixels were brought to another orientation than the stored one.
    """

    corners: Pixels
    pixel: float
    turned: bool


class Reader(ABC):
    """Reads the files of one kind.

    Attributes:
        suffixes: Of these files, in lower case.
        extra: The extra of this package that it needs, if any.
    """

    suffixes: ClassVar[tuple[str, ...]]
    extra: ClassVar[str | None] = None

    def recognises(self, head: bytes) -> bool:
        """Whether a file is of this kind, by its content. A kind without a mark of its own keeps this one: its suffixes decide.

        Args:
            head: The first :data:`HEAD` bytes of the file, or all, if it is shorter.
        """
        return False

    @abstractmethod
    def read(self, file: FileRef, *, scaled: bool) -> Picture:
        """The one picture of a file.

        Args:
            file: Of this kind.
            scaled: Whether the pixels will be shown as an image: then the file's own transforms for viewing apply, and palettes become
                colours. Else they are the numbers of a mask, as they are stored.

        Raises:
            UnreadableFileError: a file that is whole but not of use here; any other error counts as a broken file.
            ModuleNotFoundError: the extra is not installed.
        """

    def place(self, file: FileRef) -> Place | None:
        """Where the image lies in space; reads the header alone. None: the file does not tell.

        Raises:
            As :meth:`read`.
        """
        return None


def check_size(file: FileRef, height: int, width: int, pixel_bytes: int = 1) -> None:
    """Refuses what is too large to decode, or empty.

    Args:
        file: For the text of the error.
        height, width: Of the picture, pixels.
        pixel_bytes: That a pixel takes, all its samples together.

    Raises:
        UnreadableFileError: names the file, its size and the bound.
    """
    size = f"{height}x{width} pixels"
    if height < 1 or width < 1:
        raise UnreadableFileError(f"{file}: expected at least one pixel, got {size}")
    if height * width > MAX_PIXELS:
        raise UnreadableFileError(f"{file}: {size} are more than the {MAX_PIXELS} that are read; make it smaller first")
    if height * width * pixel_bytes > MAX_BYTES:
        raise UnreadableFileError(
            f"{file}: {size} of {pixel_bytes} bytes are more than the {MAX_BYTES} bytes that are read; make it smaller "
            "first"
        )


def upright(pixels: Pixels, orientation: int) -> Pixels:
    """[H, W, ...] turned upright: ``orientation`` as in EXIF and TIFF, 1 to 8; anything else counts as 1."""
    if 5 <= orientation <= 8:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
