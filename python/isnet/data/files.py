"""Files, on disk or inside a tar shard."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class UnreadableFileError(ValueError):
    """A file that is missing, broken or of another kind; the text names it."""


@dataclass(frozen=True)
class FileRef:
    """A file, or a stretch of one.

    Attributes:
        path: Of the file.
        offset, size: Where the stretch lies, in bytes; None: the whole file.
        name: Of the stretch, with the suffix of its kind.
    """

    path: Path
    offset: int | None = None
    size: int | None = None
    name: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.name}" if self.name else str(self.path)

    @property
    def suffix(self) -> str:
        """The suffix that shows the kind."""
        return suffix_of(self.name or self.path.name)

    def exists(self) -> bool:
        """Whether the file exists."""
        return self.path.is_file()

    def read(self) -> bytes:
        """Its bytes."""
        return self.head(-1)

    def head(self, count: int) -> bytes:
        """Its first ``count`` bytes, or all, if there are no more; -1: all."""
        with self.path.open("rb") as file:
            file.seek(self.offset or 0)
            sizes = [number for number in (count, self.size) if number is not None and number >= 0]
            return file.read(min(sizes, default=-1))


def suffix_of(name: str) -> str:
    """The suffix in lower case; ``.nii.gz`` counts as one."""
    lower = name.lower()
    return ".nii.gz" if lower.endswith(".nii.gz") else os.path.splitext(lower)[1]
