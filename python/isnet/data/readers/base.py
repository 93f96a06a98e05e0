"""What a reader of image files is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from isnet.data.files import FileRef

HEAD = 4096  # bytes by which a kind is recognised
Pixels = np.ndarray[Any, Any]


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
    def read(self, file: FileRef, *, scaled: bool) -> tuple[Pixels, int | None]:
        """Pixels [H, W] or [H, W, 3], and the largest number that the format has (None: no fixed range).

        Args:
            file: Of one of the suffixes.
            scaled: Whether the pixels will be shown as an image: then the file's own transforms for viewing apply. Else they are labels.

        Raises:
            UnreadableFileError: a file that is whole but not of use here; any other error counts as a broken file.
            ModuleNotFoundError: the extra is not installed.
        """
