"""What a kind of image set is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

from isnet.data.table import ImageTable


class ImageSet(ABC):
    """Images with labels and masks, in a form that :func:`isnet.data.read_table` understands."""

    @abstractmethod
    def takes(self, path: Path) -> bool:
        """Whether ``path``, which exists, is of this kind."""

    @abstractmethod
    def read(self, path: Path, masks: Path | None, labels: Sequence[str]) -> ImageTable:
        """The images.

        Args:
            path: Of this kind.
            masks: Folder of the masks.
            labels: Label columns.

        Raises:
            DataError: nothing usable, or an argument that does not apply to this kind.
        """
